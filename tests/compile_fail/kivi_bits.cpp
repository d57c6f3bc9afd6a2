// expect: terse::Kivi: bits must be 2 or 4, as in the paper.
#include "terse/quant/kivi.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Kivi<terse::KiviSpec{.bits = 8}>;
#else
template struct terse::Kivi<terse::KiviSpec{.bits = 4}>;
#endif
