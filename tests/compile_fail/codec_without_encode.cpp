// expect: terse::Compose: a codec can encode neither a token nor a block; add `encode_token` or
// expect: `encode_block`.
#include <cstddef>

#include "terse/policy/compose.hpp"

struct Own {
  static constexpr terse::Granularity granularity = terse::Granularity::per_token;
  static constexpr terse::Record record(terse::Side, int width) {
    terse::Record r;
    r.add(static_cast<std::size_t>(width) * terse::block_tokens);
    return r;
  }
#ifndef TERSE_EXPECT_FAIL
  static void encode_token(const terse::CodecContext&, const float*, int, std::byte*) {}
#endif
  static float decode(const terse::CodecContext&, const std::byte*, int, int) { return 0; }
};

template struct terse::Compose<Own>;
