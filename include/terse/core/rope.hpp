/// Rotary position embedding (RoPE, Su et al., arXiv 2104.09864): what a cache must know about it.
#pragma once

#include <cmath>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/status.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class RopePairing : std::uint8_t {
  half_split,   ///< channel c turns with channel c + rotary_dim / 2 (GPT-NeoX, Hugging Face Llama)
  interleaved,  ///< channel 2i turns with channel 2i + 1 (original Llama, GGUF Llama)
};

/// Description of a model's RoPE. The angle is linear in the position:
/// `angle(position, i) = position * inverse_frequency(i)`; dynamic scaling is not expressible.
struct RopeSpec {
  RopePairing pairing = RopePairing::half_split;
  int rotary_dim = 0;           ///< rotated channels, the first ones of a head; 0: no rotation
  double base = 10000.0;        ///< theta
  double linear_scale = 1.0;    ///< positions are divided by this (position interpolation)
  double low_freq_factor = 0;   ///< Llama-3 scaling; 0: off
  double high_freq_factor = 0;  ///< Llama-3 scaling
  double frequency_scale = 1;   ///< Llama-3 scaling "factor"
  double original_context = 0;  ///< Llama-3 scaling

  /// Angle per position of pair `i`, in radians.
  [[nodiscard]] TERSE_HOST_DEVICE double inverse_frequency(int i) const noexcept {
    const double plain = std::pow(base, -2.0 * i / rotary_dim) / linear_scale;
    if (low_freq_factor <= 0) return plain;
    const double wavelength = 2.0 * 3.14159265358979323846 / plain;
    if (wavelength < original_context / high_freq_factor) return plain;
    if (wavelength > original_context / low_freq_factor) return plain / frequency_scale;
    const double smooth =
        (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
    return (1.0 - smooth) * plain / frequency_scale + smooth * plain;
  }

  [[nodiscard]] TERSE_HOST_DEVICE int first_channel(int pair) const noexcept {
    return pairing == RopePairing::half_split ? pair : 2 * pair;
  }
  [[nodiscard]] TERSE_HOST_DEVICE int second_channel(int pair) const noexcept {
    return pairing == RopePairing::half_split ? pair + rotary_dim / 2 : 2 * pair + 1;
  }

  [[nodiscard]] Status validate(int head_dim) const noexcept {
    if (rotary_dim < 0 || rotary_dim > head_dim || rotary_dim % 2 != 0) {
      return error(StatusCode::invalid_argument,
                   "terse::RopeSpec: rotary_dim must be even and at most head_dim", rotary_dim);
    }
    if (rotary_dim > 0 && !(base > 0 && linear_scale > 0)) {
      return error(StatusCode::invalid_argument,
                   "terse::RopeSpec: base and linear_scale must be positive");
    }
    if (low_freq_factor > 0 &&
        !(high_freq_factor > low_freq_factor && frequency_scale > 0 && original_context > 0)) {
      return error(StatusCode::invalid_argument,
                   "terse::RopeSpec: Llama-3 scaling needs high_freq_factor > low_freq_factor, "
                   "frequency_scale > 0 and original_context > 0");
    }
    return {};
  }
};

/// Cosine and sine of every pair for a turn by `positions` steps: `turns [pair, 2]`. Angles in
/// double.
inline void fill_turn(const RopeSpec& rope, double positions, float* turns) noexcept {
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    const double angle = positions * rope.inverse_frequency(i);
    turns[2 * i] = static_cast<float>(std::cos(angle));
    turns[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
}

/// A caller's table of the turns of positions 0 to `positions` - 1, made once.
struct RopeTable {
  /// `[position, pair, 2]`: what fill_turn writes for each position, finite, 8-byte aligned
  const float* turns = nullptr;
  std::int64_t positions = 0;
};

/// Turns pair `i` of `vector [channel]` in place. Rounded in one way everywhere: codes come from
/// it.
TERSE_HOST_DEVICE inline void turn_pair(const RopeSpec& rope, int i, float cosine, float sine,
                                        float* vector) noexcept {
  float& a = vector[rope.first_channel(i)];
  float& b = vector[rope.second_channel(i)];
  const float x = a, y = b;
  a = fused_multiply_add(x, cosine, -rounded_product(y, sine));
  b = fused_multiply_add(x, sine, rounded_product(y, cosine));
}

/// Turns `vector [channel]` in place by what fill_turn wrote.
inline void turn(const RopeSpec& rope, const float* turns, float* vector) noexcept {
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    turn_pair(rope, i, turns[2 * i], turns[2 * i + 1], vector);
  }
}

/// Turns `vector [channel]` in place by `positions` steps (negative turns back). Angles in double.
inline void rotate(const RopeSpec& rope, double positions, float* vector) noexcept {
  for (int i = 0; i < rope.rotary_dim / 2; ++i) {
    const double angle = positions * rope.inverse_frequency(i);
    turn_pair(rope, i, static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle)),
              vector);
  }
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
