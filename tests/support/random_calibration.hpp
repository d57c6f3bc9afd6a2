/// A calibration that belongs to no model: bases that are not orthogonal, means, feedback.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "terse/cache/calibration.hpp"

#include "tests/support/random.hpp"

namespace terse::tests {

/// Bell-shaped, of integer arithmetic only: exact on every machine.
inline float bell_shaped(Random& random) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += random.below(4096);
  return static_cast<float>(sum - 2 * 4096) / 2048.0f;
}

/// Writes mean, weight, to_basis and feedback of a stream.
inline void fill_randomly(Random& random, Side side, int width, float* stream) {
  const CalibrationLayout at{width};
  const float spread = 0.5f / std::sqrt(static_cast<float>(width));
  for (int c = 0; c < width; ++c) {
    stream[at.mean() + c] = side == Side::key ? bell_shaped(random) : 0.0f;
    stream[at.weight() + c] = static_cast<float>(0.5 + random.uniform());
    for (int k = 0; k < width; ++k) {
      const std::ptrdiff_t ck = std::ptrdiff_t{c} * width + k;
      stream[at.to_basis() + ck] = (c == k ? 1.0f : 0.0f) + spread * bell_shaped(random);
      if (k < c) stream[at.feedback() + ck] = 2.0f * spread * bell_shaped(random);
    }
  }
}

inline Calibration random_calibration(const CalibrationShape& shape, std::uint64_t seed = 1,
                                      std::uint64_t model_fingerprint = 0) {
  Random random(seed);
  return std::move(
      *Calibration::make(shape, model_fingerprint, [&](Side side, int, int, float* stream) {
        fill_randomly(random, side, shape.head_dim, stream);
      }));
}

}  // namespace terse::tests
