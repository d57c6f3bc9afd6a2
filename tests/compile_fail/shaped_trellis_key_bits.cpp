// expect: terse::TrellisShaped: key_bits must be 2, 3 or 4; only values have codes of 1 bit.
#include "terse/quant/shaped_trellis.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::TrellisShaped<terse::ShapedSpec{.key_bits = 1, .value_bits = 1}>;
#else
template struct terse::TrellisShaped<terse::ShapedSpec{.key_bits = 2, .value_bits = 1}>;
#endif
