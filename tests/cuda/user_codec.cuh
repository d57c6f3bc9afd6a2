/// A codec that no kernel knows: bf16, token by token.
#pragma once

#include <cstring>

#include "terse/terse.hpp"

namespace terse::tests {

struct UserCodec {
  static constexpr Granularity granularity = Granularity::per_token;
  TERSE_HOST_DEVICE static constexpr Record record(Side, int width) noexcept {
    Record r;
    r.add(static_cast<std::size_t>(width) * block_tokens * 2);
    return r;
  }
  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    for (int c = 0; c < context.width; ++c) {
      const BF16 b = to_bf16(x[c]);
      std::memcpy(block + (token * context.width + c) * 2, &b, 2);
    }
  }
  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    BF16 b;
    std::memcpy(&b, block + (token * context.width + channel) * 2, 2);
    return to_float(b);
  }
};

}  // namespace terse::tests
