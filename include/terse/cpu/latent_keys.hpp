/// Keys rebuilt from latents inside attention: leave the codec's basis, multiply, rotate.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/cpu/kernel_table.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// Turns decoded latents `keys [channel, 64]` back from the codec's basis. `vector`: scratch
/// [width].
template <class KeyCodec>
void leave_basis(const CodecContext& context, int tokens, float* keys, float* vector) noexcept {
  if constexpr (HasBasis<KeyCodec>) {
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < context.width; ++c) vector[c] = keys[c * block_tokens + t];
      from_basis<KeyCodec>(context, vector);
      for (int c = 0; c < context.width; ++c) keys[c * block_tokens + t] = vector[c];
    }
  }
}

/// Cosines and sines of an entry's tokens: `angles [pair, 2, 64]`. Angles of a pair follow each
/// other by the addition theorem in double where positions do.
template <class Ref>
void block_angles(const Ref& r, int sequence, int unit, int entry, bool sinks,
                  float* angles) noexcept {
  const int tokens = sinks ? sink_block_tokens : block_tokens;
  for (int pair = 0; pair < r.rope.rotary_dim / 2; ++pair) {
    const double frequency = r.rope.inverse_frequency(pair);
    float* cosines = angles + static_cast<std::size_t>(pair) * 2 * block_tokens;
    float* sines = cosines + block_tokens;
    std::int64_t previous = -1;
    double cosine = 1, sine = 0;
    const double step_cosine = std::cos(frequency), step_sine = std::sin(frequency);
    for (int t = 0; t < tokens; ++t) {
      const std::int64_t position = sinks ? t : r.position(sequence, unit, entry, t);
      if (t == 0 || position != previous + 1) {
        cosine = std::cos(static_cast<double>(position) * frequency);
        sine = std::sin(static_cast<double>(position) * frequency);
      } else {
        const double next = cosine * step_cosine - sine * step_sine;
        sine = sine * step_cosine + cosine * step_sine;
        cosine = next;
      }
      previous = position;
      cosines[t] = static_cast<float>(cosine);
      sines[t] = static_cast<float>(sine);
    }
  }
}

/// `rebuilt [head_dim, 64]` = RoPE(key_up of the head * latents), from `latents [rank, 64]`.
template <class Ref>
void rebuild_keys(const Ref& r, const KernelTable& table, int kv_head, int tokens,
                  const float* latents, const float* angles, float* rebuilt) noexcept {
  const int head_dim = r.shape.head_dim;
  table.scores_f32(r.factors.key_up + static_cast<std::size_t>(kv_head * head_dim) *
                                          static_cast<std::size_t>(r.shape.key_width),
                   head_dim, r.shape.key_width, latents, block_tokens, rebuilt);
  for (int pair = 0; pair < r.rope.rotary_dim / 2; ++pair) {
    const float* cosines = angles + static_cast<std::size_t>(pair) * 2 * block_tokens;
    const float* sines = cosines + block_tokens;
    float* a = rebuilt + r.rope.first_channel(pair) * block_tokens;
    float* b = rebuilt + r.rope.second_channel(pair) * block_tokens;
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
