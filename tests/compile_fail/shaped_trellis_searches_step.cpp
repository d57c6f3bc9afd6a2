// expect: terse::TrellisShaped: steps are searched for grids only; leave searches_step out.
#include "terse/quant/shaped_trellis.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::TrellisShaped<terse::ShapedSpec{.searches_step = true}>;
#else
template struct terse::TrellisShaped<terse::ShapedSpec{}>;
#endif
