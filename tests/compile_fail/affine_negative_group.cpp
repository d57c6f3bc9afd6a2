// expect: terse::AffineGroup: group is negative.
#include "terse/quant/affine_group.hpp"

#ifdef TERSE_EXPECT_FAIL
using Own = terse::AffineGroup<terse::AffineSpec{.group = -32}>;
#else
using Own = terse::AffineGroup<terse::AffineSpec{.group = 32}>;
#endif
static_assert(Own::granularity == terse::Granularity::per_token);
