// expect: terse::Compose: a codec lacks `decode`; attention reads blocks through it
// expect: static float decode(const terse::CodecContext&, const std::byte* block, int token, int
// expect: channel)`.
#include <cstddef>

#include "terse/policy/compose.hpp"

struct Own {
  static constexpr terse::Granularity granularity = terse::Granularity::per_token;
  static constexpr terse::Record record(terse::Side, int width) {
    terse::Record r;
    r.add(static_cast<std::size_t>(width) * terse::block_tokens);
    return r;
  }
  static void encode_token(const terse::CodecContext&, const float*, int, std::byte*) {}
#ifndef TERSE_EXPECT_FAIL
  static float decode(const terse::CodecContext&, const std::byte*, int, int) { return 0; }
#endif
};

template struct terse::Compose<Own>;
