/// Blocks of planes, read as deep as PlaneReading asks, and the count of what was read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cpu/block_reader.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/quant/plane_exponents.hpp"
#include "terse/quant/plane_plan.hpp"
#include "terse/quant/planes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace detail {

/// Bytes of a block that is read whole.
template <class C>
[[nodiscard]] std::uint64_t whole_bytes(Side side, int width) noexcept {
  if constexpr (PlaneCodec<C>) {
    return static_cast<std::uint64_t>(C::runs(width)) *
           static_cast<std::uint64_t>(C::read_bytes(C::num_planes, width));
  } else {
    return C::record(side, width).bytes;
  }
}

/// Decodes keys, `out [channel, 64]`, as deep as `queries [vectors, width]`, which are scaled by
/// `scale`, need them. `weights [width]`: scratch. Gives the bytes read.
template <PlaneCodec C>
[[nodiscard]] std::uint64_t decode_keys(const CodecContext& context, const std::byte* block,
                                        const float* queries, int vectors, float scale,
                                        const PlaneReading& reading, float* weights,
                                        float* out) noexcept {
  const int width = context.width;
  std::uint8_t planes[max_stream_width];
  bool is_planned = false;
  if constexpr (ExponentPlanes<C>) {
    if (reading.rule == PlaneRule::exponents) {
      plan_keys_by_exponent<C>(queries, vectors, width, 1.0f / scale, C::exponents(width, block),
                               reading.margin, planes);
      is_planned = true;
    }
  }
  if (!is_planned) {
    for (int c = 0; c < width; ++c) {
      float largest = 0.0f;
      for (int v = 0; v < vectors; ++v) {
        largest = std::max(largest, std::fabs(queries[std::ptrdiff_t{v} * width + c]));
      }
      weights[c] = largest * C::run_unit(context, block, c);
    }
    const int together = C::runs_together(width);
    for (int c = 0; c < width; c += together) {
      const int end = std::min(c + together, width);
      std::fill(weights + c, weights + end, *std::max_element(weights + c, weights + end));
    }
    const float share = key_share<C>(weights, width, reading.logit_tolerance);
    for (int c = 0; c < width; ++c) {
      planes[c] = static_cast<std::uint8_t>(planes_within<C>(weights[c], share));
    }
  }
  std::uint64_t bytes = 0;
  for (int c = 0; c < width; ++c) {
    bytes += read_run<C>(context, block, c, planes[c], out);
  }
  return bytes;
}

/// Decodes values, `out [64, channel]`, as deep as `probabilities [vectors, 64]`, of which the sums
/// of `states [vectors]` make one, need them; `tokens`: of the sequence. Gives the bytes read.
template <PlaneCodec C>
[[nodiscard]] std::uint64_t decode_values(const CodecContext& context, const std::byte* block,
                                          const float* probabilities, const SoftmaxState* states,
                                          int vectors, std::int64_t tokens,
                                          const PlaneReading& reading, float* out) noexcept {
  float largest[block_tokens] = {}, units[block_tokens], peak = 0.0f;
  for (int v = 0; v < vectors; ++v) {
    if (states[v].sum <= 0.0f) continue;
    const float* own = probabilities + std::ptrdiff_t{v} * block_tokens;
    for (int t = 0; t < block_tokens; ++t) {
      largest[t] = std::max(largest[t], own[t] / states[v].sum);
    }
  }
  for (int t = 0; t < block_tokens; ++t) {
    units[t] = C::run_unit(context, block, t);
    if (largest[t] > 0.0f) peak = std::max(peak, units[t] * C::plane_error(0));
  }
  std::uint64_t bytes = 0;
  const int together = C::runs_together(context.width);
  for (int begin = 0; begin < block_tokens; begin += together) {
    int planes = 0;
    for (int t = begin; t < begin + together; ++t) {
      const float share =
          value_share(largest[t], static_cast<float>(tokens), peak, reading.value_tolerance);
      planes = std::max(planes, planes_within<C>(largest[t] * units[t], share));
    }
    for (int t = begin; t < begin + together; ++t) {
      bytes += read_run<C>(context, block, t, planes, out);
    }
  }
  return bytes;
}

}  // namespace detail
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
