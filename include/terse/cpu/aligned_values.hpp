/// Values under PlaneRule::exponents, which takes two passes: an estimate of the output from the
/// likeliest tokens comes before it is known how deep the values are read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/block_reader.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/policy/plane_reading.hpp"
#include "terse/quant/plane_exponents.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace detail {

/// A decoded token and its logit.
struct LikelyToken {
  float logit = -INFINITY;
  int entry = 0;
  int token = 0;
};

/// What the first pass leaves for the second.
struct AlignedValues {
  LikelyToken* likely = nullptr;      ///< `[vector, estimate_tokens]`: of every 32nd token
  SoftmaxState* states = nullptr;     ///< `[vector]`, over everything that the rows read
  int* aligned = nullptr;             ///< `[vector]`, as aligned_exponent
  std::uint8_t* exponents = nullptr;  ///< `[channel]`: largest of the decoded values
  float* estimate = nullptr;          ///< `[channel]`
};

/// Takes a block's logits `scores [64]` of vector `v`, which are lost, into the first pass. `entry`
/// is negative for exact tokens.
inline void take_logits(const KernelTable& table, const AlignedValues& a, int v, int entry,
                        std::uint64_t mask, float* scores) noexcept {
  if (mask == 0) return;
  if (entry >= 0) {
    LikelyToken* likely = a.likely + std::ptrdiff_t{v} * estimate_tokens;
    for (int t = 0; t < block_tokens; ++t) {
      LikelyToken& best = likely[t % estimate_tokens];
      if ((mask >> t & 1u) != 0 && scores[t] > best.logit) best = {scores[t], entry, t};
    }
  }
  table.softmax_block(scores, mask, a.states + v);
}

/// Takes the exponents of a block's tokens in `mask` into the channels' largest.
template <ExponentPlanes C>
void take_exponents(int width, const std::byte* block, std::uint64_t mask,
                    std::uint8_t* exponents) noexcept {
  for (int t = 0; t < block_tokens; ++t) {
    if ((mask >> t & 1u) == 0) continue;
    const std::byte* first = block + std::ptrdiff_t{t} * width;
    for (int c = 0; c < width; ++c) {
      exponents[c] = std::max(
          exponents[c], static_cast<std::uint8_t>(static_cast<unsigned>(first[c]) >> 2 & 31u));
    }
  }
}

/// Ends the first pass of vector `v`. `values(entry)` gives the encoded values of an entry.
template <ExponentPlanes C, class Values>
void estimate_output(const CodecContext& context, const AlignedValues& a, int v, Values&& values,
                     float* run) noexcept {
  const int width = context.width;
  std::fill_n(a.estimate, width, 0.0f);
  for (int i = 0; i < estimate_tokens; ++i) {
    const LikelyToken& likely = a.likely[std::ptrdiff_t{v} * estimate_tokens + i];
    if (likely.logit == -INFINITY) continue;
    const float probability = std::exp(likely.logit - a.states[v].max) / a.states[v].sum;
    C::decode_run(context, values(likely.entry), likely.token, 1, run);
    for (int c = 0; c < width; ++c) a.estimate[c] += probability * std::fabs(run[c]);
  }
  a.aligned[v] = aligned_exponent(a.estimate, a.exponents, width);
}

/// Decodes values, `out [64, channel]`, as deep as the vectors' `probabilities [vectors, 64]`,
/// relative to the maxima of `running [vectors]`, need them. Gives the bytes read.
template <ExponentPlanes C>
[[nodiscard]] std::uint64_t decode_aligned_values(const CodecContext& context,
                                                  const std::byte* block,
                                                  const float* probabilities,
                                                  const SoftmaxState* running, int vectors,
                                                  const AlignedValues& a, int margin,
                                                  float* out) noexcept {
  std::uint64_t bytes = 0;
  for (int t = 0; t < block_tokens; ++t) {
    int planes = 1;
    for (int v = 0; v < vectors; ++v) {
      const float p = probabilities[std::ptrdiff_t{v} * block_tokens + t];
      if (p == 0.0f) continue;
      const float probability = p * std::exp(running[v].max - a.states[v].max) / a.states[v].sum;
      planes = std::max(planes, planes_of_value<C>(a.aligned[v], probability, margin));
    }
    bytes += read_run<C>(context, block, t, planes, out);
  }
  return bytes;
}

}  // namespace detail
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
