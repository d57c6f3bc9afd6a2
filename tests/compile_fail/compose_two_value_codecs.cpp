// expect: terse::Compose: two codecs for the values; a cache stores one code per element; keep
// expect: one.
#include "terse/policy/compose.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/int8.hpp"

struct Keys {
  using key_codec = terse::Int8;
};
struct Values {
  using value_codec = terse::Int8;
};

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<Values, terse::Fp8>;
#else
template struct terse::Compose<Keys, Values>;
#endif
