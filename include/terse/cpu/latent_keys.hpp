/// Keys rebuilt from latents inside attention: leave the codec's basis, multiply, rotate.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/cpu/basis.hpp"
#include "terse/cpu/kernel_table.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// Turns decoded latents `keys [channel, 64]` back from the codec's basis. `vector`: scratch
/// [width].
template <class KeyCodec>
void leave_basis(const KernelTable& table, const CodecContext& context, int tokens, float* keys,
                 float* vector) noexcept {
  if constexpr (HasBasis<KeyCodec>) {
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < context.width; ++c) vector[c] = keys[c * block_tokens + t];
      turn_from_basis<KeyCodec>(table, context, vector);
      for (int c = 0; c < context.width; ++c) keys[c * block_tokens + t] = vector[c];
    }
  }
}

/// What turns rebuilt keys to their positions.
struct AngleTables {
  double* steps = nullptr;   ///< angle per position, [pair]
  float* offsets = nullptr;  ///< cosines and sines of 0 to 63 positions, [pair, 2, 64]
  float* block = nullptr;    ///< of a block's tokens, [pair, 2, 64]
};

inline void fill_offsets(const RopeSpec& rope, const AngleTables& tables) noexcept {
  for (int pair = 0; pair < rope.rotary_dim / 2; ++pair) {
    tables.steps[pair] = rope.inverse_frequency(pair);
    // By the addition theorem, in double.
    const double step_cosine = std::cos(tables.steps[pair]);
    const double step_sine = std::sin(tables.steps[pair]);
    double cosine = 1, sine = 0;
    float* out = tables.offsets + std::ptrdiff_t{pair} * 2 * block_tokens;
    for (int t = 0; t < block_tokens; ++t) {
      out[t] = static_cast<float>(cosine);
      out[block_tokens + t] = static_cast<float>(sine);
      const double next = cosine * step_cosine - sine * step_sine;
      sine = sine * step_cosine + cosine * step_sine;
      cosine = next;
    }
  }
}

/// Fills `tables.block` for the tokens of an entry, or for the exact sinks.
template <class Ref>
void block_angles(const Ref& r, int sequence, int unit, int entry, bool sinks,
                  const AngleTables& tables) noexcept {
  const bool in_order = sinks || r.is_in_order(sequence, unit, entry);
  const double first = sinks ? 0.0 : static_cast<double>(r.first_position(sequence, unit, entry));
  for (int pair = 0; pair < r.rope.rotary_dim / 2; ++pair) {
    const double step = tables.steps[pair];
    const float* offset = tables.offsets + std::ptrdiff_t{pair} * 2 * block_tokens;
    float* out = tables.block + std::ptrdiff_t{pair} * 2 * block_tokens;
    if (!in_order) {
      for (int t = 0; t < block_tokens; ++t) {
        const double angle = static_cast<double>(r.position(sequence, unit, entry, t)) * step;
        out[t] = static_cast<float>(std::cos(angle));
        out[block_tokens + t] = static_cast<float>(std::sin(angle));
      }
      continue;
    }
    const auto cosine = static_cast<float>(std::cos(first * step));
    const auto sine = static_cast<float>(std::sin(first * step));
    for (int t = 0; t < block_tokens; ++t) {
      out[t] = cosine * offset[t] - sine * offset[block_tokens + t];
      out[block_tokens + t] = sine * offset[t] + cosine * offset[block_tokens + t];
    }
  }
}

/// Up-projection of a KV head's keys, `[channel, key_rank]`.
template <class Ref>
[[nodiscard]] const float* key_up(const Ref& r, int kv_head) noexcept {
  return r.factors.key_up + std::ptrdiff_t{kv_head} * r.shape.head_dim * r.shape.key_width;
}

/// Turns keys `[head_dim, 64]` to their tokens' positions.
inline void rotate_rebuilt(const RopeSpec& rope, int tokens, const float* angles,
                           float* keys) noexcept {
  for (int pair = 0; pair < rope.rotary_dim / 2; ++pair) {
    const float* cosines = angles + std::ptrdiff_t{pair} * 2 * block_tokens;
    const float* sines = cosines + block_tokens;
    float* a = keys + rope.first_channel(pair) * block_tokens;
    float* b = keys + rope.second_channel(pair) * block_tokens;
    for (int t = 0; t < tokens; ++t) {
      const float x = a[t], y = b[t];
      a[t] = x * cosines[t] - y * sines[t];
      b[t] = x * sines[t] + y * cosines[t];
    }
  }
}

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
