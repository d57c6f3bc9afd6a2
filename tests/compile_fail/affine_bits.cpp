// expect: terse::AffineGroup: bits must be 1, 2, 3, 4 or 8: there is no stored order for others.
#include "terse/quant/affine_group.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::AffineGroup<terse::AffineSpec{.bits = 5}>;
#else
template struct terse::AffineGroup<terse::AffineSpec{.bits = 2}>;
#endif
