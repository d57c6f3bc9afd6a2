// expect: terse::Compose: two codecs for the keys; a cache stores one code per element; keep
// expect: one.
#include "terse/policy/compose.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"

struct Keys {
  using key_codec = terse::Int8;
};
struct Values {
  using value_codec = terse::Int8;
};

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<Keys, terse::Kivi2>;
#else
template struct terse::Compose<Keys, Values>;
#endif
