// expect: terse::Kivi: residual_tokens must be a positive multiple of 64
// expect: use 64 or 128.
#include "terse/quant/kivi.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Kivi<terse::KiviSpec{.residual_tokens = 32}>;
#else
template struct terse::Kivi<terse::KiviSpec{.residual_tokens = 64}>;
#endif
