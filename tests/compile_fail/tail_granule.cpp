// expect: terse::Tail: min_tokens must be in 0..2^20, granule_tokens a positive multiple of 64
#include "terse/policy/tail.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Tail<terse::TailSpec{.granule_tokens = 65}>;
#else
template struct terse::Tail<terse::TailSpec{.granule_tokens = 128}>;
#endif
