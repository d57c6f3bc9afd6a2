// expect: terse::Compose: a codec lacks `record`; stored bytes are computed from it
// expect: static constexpr terse::Record record(terse::Side, int width)`.
#include <cstddef>

#include "terse/policy/compose.hpp"

struct Own {
  static constexpr terse::Granularity granularity = terse::Granularity::per_token;
#ifndef TERSE_EXPECT_FAIL
  static constexpr terse::Record record(terse::Side, int width) {
    terse::Record r;
    r.add(static_cast<std::size_t>(width) * terse::block_tokens);
    return r;
  }
#endif
  static void encode_token(const terse::CodecContext&, const float*, int, std::byte*) {}
  static float decode(const terse::CodecContext&, const std::byte*, int, int) { return 0; }
};

template struct terse::Compose<Own>;
