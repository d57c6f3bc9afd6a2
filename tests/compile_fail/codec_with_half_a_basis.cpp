// expect: terse::Compose: a codec has only one of `to_basis` and `from_basis`
// expect: add the other.
#include "terse/policy/compose.hpp"

struct Own : terse::Identity {
  static void to_basis(const terse::CodecContext&, float*) {}
#ifndef TERSE_EXPECT_FAIL
  static void from_basis(const terse::CodecContext&, float*) {}
#endif
};

template struct terse::Compose<Own>;
