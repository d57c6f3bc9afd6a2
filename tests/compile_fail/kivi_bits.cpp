// expect: terse::Kivi: bits must be 2, 3 or 4; the paper has 2 and 4.
#include "terse/quant/kivi.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Kivi<terse::KiviSpec{.bits = 8}>;
#else
template struct terse::Kivi<terse::KiviSpec{.bits = 4}>;
#endif
