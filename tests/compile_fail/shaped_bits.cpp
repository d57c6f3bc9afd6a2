// expect: terse::ShapedGrid: bits must be 1, 2, 3 or 4.
#include "terse/quant/shaped.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::ShapedGrid<terse::ShapedGridSpec{.bits = 5}>;
#else
template struct terse::ShapedGrid<terse::ShapedGridSpec{.bits = 2}>;
#endif
