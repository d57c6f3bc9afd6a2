// expect: terse::NonUniformGrid: bits must be 2, 3 or 4.
#include "terse/quant/kvquant.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::NonUniformGrid<terse::NonUniformSpec{.bits = 1}>;
#else
template struct terse::NonUniformGrid<terse::NonUniformSpec{.bits = 4}>;
#endif
