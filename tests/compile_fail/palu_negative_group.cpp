// expect: terse::Palu: a head group is negative; use 0 for all KV heads.
#include "terse/lowrank/palu.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Palu<terse::PaluSpec{.key_heads_per_group = -1}>;
#else
template struct terse::Palu<terse::PaluSpec{.key_heads_per_group = 0}>;
#endif
