// expect: terse::AffineGroup: a per-channel group must divide the block of 64 tokens
#include "terse/policy/compose.hpp"
#include "terse/quant/kivi.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::Kivi<terse::KiviSpec{.group_tokens = 128}>>;
#else
template struct terse::Compose<terse::Kivi<terse::KiviSpec{.group_tokens = 64}>>;
#endif
