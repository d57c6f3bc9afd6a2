// expect: terse::AffineGroup: a per-channel group must divide the block of 64 tokens
// expect: use 16, 32 or 64.
#include "terse/quant/affine_group.hpp"

#ifdef TERSE_EXPECT_FAIL
using Own = terse::AffineGroup<terse::AffineSpec{.granularity = terse::Granularity::per_channel,
                                                 .group = 48}>;
#else
using Own = terse::AffineGroup<terse::AffineSpec{.granularity = terse::Granularity::per_channel,
                                                 .group = 32}>;
#endif
static_assert(Own::granularity == terse::Granularity::per_channel);
