// expect: terse::AffineGroup: bits must be 2, 4 or 8; codes never straddle bytes.
#include "terse/quant/affine_group.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::AffineGroup<terse::AffineSpec{.bits = 3}>;
#else
template struct terse::AffineGroup<terse::AffineSpec{.bits = 2}>;
#endif
