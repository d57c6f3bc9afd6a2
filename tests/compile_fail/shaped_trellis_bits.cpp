// expect: terse::ShapedTrellis: bits must be 1, 2, 3 or 4.
#include "terse/quant/shaped_trellis.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::ShapedTrellis<terse::ShapedTrellisSpec{.bits = 5}>;
#else
template struct terse::ShapedTrellis<terse::ShapedTrellisSpec{.bits = 2}>;
#endif
