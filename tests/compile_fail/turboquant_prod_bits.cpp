// expect: terse::SketchedLevels: bits must be 2, 3 or 4.
// expect: terse::TurboQuantProd: bits must be 2, 3 or 4.
#include "terse/quant/turboquant_prod.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::TurboQuantProd<terse::TurboQuantProdSpec{.bits = 1}>;
template struct terse::SketchedLevels<terse::SketchedLevelsSpec{.bits = 1}>;
#else
template struct terse::TurboQuantProd<terse::TurboQuantProdSpec{.bits = 4}>;
template struct terse::SketchedLevels<terse::SketchedLevelsSpec{.bits = 4}>;
#endif
