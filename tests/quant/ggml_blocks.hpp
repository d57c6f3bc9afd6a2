/// Decoded numbers of llama.cpp's q8_0 and q4_0 for 32 numbers, written from the description of the
/// block formats: a scale in fp16 found from the largest magnitude, codes from the unrounded scale.
#pragma once

#include <cmath>
#include <vector>

#include "terse/core/scalar.hpp"

namespace terse::tests {

/// q8_0: d = max|x| / 127, code = round(x / d) with halves away from zero.
inline void q8_0_block(const float* x, int count, float* decoded) {
  float largest = 0.0f;
  for (int i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(x[i]));
  const float d = largest / 127.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < count; ++i) {
    const float product = x[i] * inverse;
    decoded[i] = std::round(product) * to_float(to_f16(d));
  }
}

/// q4_0: d = m / -8 for the first number m of the largest magnitude, code = min(15, x / d + 8.5).
inline void q4_0_block(const float* x, int count, float* decoded) {
  float largest = 0.0f, signed_largest = 0.0f;
  for (int i = 0; i < count; ++i) {
    if (std::fabs(x[i]) > largest) {
      largest = std::fabs(x[i]);
      signed_largest = x[i];
    }
  }
  const float d = signed_largest / -8.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < count; ++i) {
    volatile float product = x[i] * inverse;  // rounded before the sum, whatever the compiler does
    const int code = static_cast<int>(product + 8.5f);
    decoded[i] = static_cast<float>((code < 15 ? code : 15) - 8) * to_float(to_f16(d));
  }
}

using BlockFormat = void (*)(const float*, int, float*);

/// `x [64, width]` through a block format, 32 channels of a token at a time.
inline std::vector<float> by_blocks(BlockFormat format, const std::vector<float>& x, int width) {
  std::vector<float> decoded(x.size());
  for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(width)) {
    for (int c = 0; c < width; c += 32) {
      const int count = width - c < 32 ? width - c : 32;
      format(x.data() + row + c, count, decoded.data() + row + c);
    }
  }
  return decoded;
}

}  // namespace terse::tests
