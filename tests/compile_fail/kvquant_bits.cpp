// expect: terse::NonUniformGrid: bits must be 2, 3 or 4.
// expect: terse::KVQuant: bits must be 2, 3 or 4.
#include "terse/quant/kvquant.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::KVQuant<terse::KVQuantSpec{.bits = 1}>;
template struct terse::NonUniformGrid<terse::NonUniformSpec{.bits = 1}>;
#else
template struct terse::KVQuant<terse::KVQuantSpec{.bits = 4}>;
template struct terse::NonUniformGrid<terse::NonUniformSpec{.bits = 4}>;
#endif
