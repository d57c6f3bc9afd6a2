// expect: terse::AffineGroup: of 1 bit there are only the two levels of ScaleRule::least_squares.
#include "terse/quant/affine_group.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::AffineGroup<terse::AffineSpec{.bits = 1}>;
#else
template struct terse::AffineGroup<terse::AffineSpec{.bits = 1,
                                                     .rule = terse::ScaleRule::least_squares}>;
#endif
