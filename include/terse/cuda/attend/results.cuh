/// From the sums of warps to output rows: over the warps of a thread block, then over the thread
/// blocks of a unit, in the last of them to arrive.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/prefix_tokens.cuh"
#include "terse/cuda/warp/basis.cuh"
#include "terse/cuda/warp/dense_turn.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/calibration.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct Results : PrefixTokens<Config> {
  using Base = PrefixTokens<Config>;
  using Base::Base;
  using Base::call;
  using Base::head_of;
  using Base::lane;
  using Base::lane_channels;
  using Base::quad;
  using Base::row_of;
  using Base::shared;
  using Base::slot;
  using Base::slots;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using Base::width;
  using typename Base::Policy;
  using ValueCodec = typename Policy::value_codec;
  static constexpr int merge_batch = 18;  ///< partial results read at once

  /// Four channels of a vector, summed over warps or thread blocks.
  struct Quad {
    float4 sums = {0.0f, 0.0f, 0.0f, 0.0f};
    float base = -INFINITY, denominator = 0.0f;

    __device__ __forceinline__ void scale(float factor) {
      sums.x *= factor;
      sums.y *= factor;
      sums.z *= factor;
      sums.w *= factor;
    }
    __device__ __forceinline__ void add(const float4& other, float other_denominator,
                                        float factor) {
      sums.x = __fmaf_rn(other.x, factor, sums.x);
      sums.y = __fmaf_rn(other.y, factor, sums.y);
      sums.z = __fmaf_rn(other.z, factor, sums.z);
      sums.w = __fmaf_rn(other.w, factor, sums.w);
      denominator = __fmaf_rn(other_denominator, factor, denominator);
    }
  };

  /// What becomes of a segment's sums, once its warps have published them: those of a unit that
  /// other thread blocks share are left for the last of them to arrive, which stores the rows.
  /// Without tokens nothing was published. By all threads, which meet before; loops stay rolled,
  /// since this code is fetched anew each time that it runs.
  __device__ void finish(const Segment& s, bool has_tokens) {
    if (s.vectors <= 0) return;  // the caller has no place for them
    __syncthreads();
    const bool is_shared = s.first_block != s.last_block;
#pragma unroll 1
    for (bool merges = false;; merges = true) {
#pragma unroll 1
      for (int v = slot; v < s.vectors && slot < slots; v += slots) {
        Quad x;
        if (merges) {
          add_blocks(s, v, x);
        } else if (has_tokens) {
          add_warps(v, x);
        }
        if (is_shared && !merges) {
          leave(s, v, x);
        } else {
          complete(s, v, x);
        }
      }
      if (!is_shared || merges) break;
      if (!arrives_last(call, s, &shared.is_last)) return;
    }
    __syncthreads();
    const CodecContext context = this->context(Side::value, s.unit);
    const float* turned = turn_results(context, s.vectors);
#pragma unroll 1
    for (int v = warp; v < s.vectors; v += warps) store(s, context, turned, v);
  }

 private:
  /// x = what the warps have published.
  __device__ __forceinline__ void add_warps(int v, Quad& x) const {
    float2 states[warps];
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      states[w] = shared.states[w][v];
      x.base = states[w].y == 0.0f ? x.base : fmaxf(x.base, states[w].x);
    }
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      const float factor = states[w].y == 0.0f ? 0.0f : exp2_approximate(states[w].x - x.base);
      x.add(*reinterpret_cast<const float4*>(&shared.sums[w][v][4 * quad]), states[w].y, factor);
    }
  }

  /// Where thread block `b` leaves its share of a segment's unit: a thread block shares at most one
  /// unit with those before it and one, as the first, with those behind it.
  [[nodiscard]] __device__ __forceinline__ static std::size_t partial_of(const Segment& s, int b) {
    const int place = b == s.first_block ? static_cast<int>(gridDim.x) + b : b;
    return static_cast<std::size_t>(place) * vectors;
  }
  /// Writes this thread block's share of a unit.
  __device__ __forceinline__ void leave(const Segment& s, int v, const Quad& x) const {
    const std::size_t own = partial_of(s, static_cast<int>(blockIdx.x)) + v;
    reinterpret_cast<float4*>(call.partial_sums + own * width)[quad] = x.sums;
    if (quad == 0) call.partial_states[own] = {x.base, x.denominator};
  }

  /// x = what all thread blocks of a unit have left, in their order.
  __device__ __forceinline__ void add_blocks(const Segment& s, int v, Quad& x) const {
#pragma unroll 1
    for (int begin = s.first_block; begin <= s.last_block; begin += merge_batch) {
      float4 sums[merge_batch];
      float2 states[merge_batch];
      const int count = s.last_block - begin + 1;
      const std::size_t first = partial_of(s, begin) + v,
                        other = static_cast<std::size_t>(begin) * vectors + v;
      const float2* state_at = call.partial_states + other;
      const float4* sums_at =
          reinterpret_cast<const float4*>(call.partial_sums + other * width) + quad;
      states[0] = __ldcg(call.partial_states + first);
      sums[0] = __ldcg(reinterpret_cast<const float4*>(call.partial_sums + first * width) + quad);
#pragma unroll
      for (int i = 1; i < merge_batch; ++i) {  // all loads in flight at once
        states[i] = {0.0f, 0.0f};
        sums[i] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (i >= count) continue;
        states[i] = __ldcg(state_at + i * vectors);
        sums[i] = __ldcg(sums_at + i * (vectors * width / 4));
      }
      float high = x.base;
#pragma unroll
      for (int i = 0; i < merge_batch; ++i) {
        high = states[i].y == 0.0f ? high : fmaxf(high, states[i].x);
      }
      const float old_factor = x.denominator == 0.0f ? 0.0f : exp2_approximate(x.base - high);
      x.scale(old_factor);
      x.denominator *= old_factor;
      x.base = high;
#pragma unroll
      for (int i = 0; i < merge_batch; ++i) {
        const float factor = states[i].y == 0.0f ? 0.0f : exp2_approximate(states[i].x - high);
        x.add(sums[i], states[i].y, factor);
      }
    }
  }

  /// Adds the sink logit, divides, and leaves the vector for `store`.
  __device__ __forceinline__ void complete(const Segment& s, int v, Quad& x) {
    constexpr float log2e = 1.4426950408889634f, ln2 = 0.69314718055994531f;
    const int row = row_of(s, v);
    const int head = head_of(s, v, row);
    if constexpr (Base::adds_offsets) x.base += this->lse_offset(v);
    if (call.params.sink_logits != nullptr) {
      const float sink = call.params.sink_logits[head] * log2e;
      const float high = fmaxf(x.base, sink);
      if (high > -INFINITY) {
        const float factor = x.denominator == 0.0f ? 0.0f : exp2f(x.base - high);
        x.scale(factor);
        x.denominator = x.denominator * factor + exp2f(sink - high);
        x.base = high;
      }
    }
    x.scale(x.denominator == 0.0f ? 0.0f : 1.0f / x.denominator);
    *reinterpret_cast<float4*>(&shared.result[v][4 * quad]) = x.sums;
    if (call.lse_ln != nullptr && quad == 0) {
      call.lse_ln[std::int64_t{s.row0 + row} * call.r.shape.query_heads + head] =
          x.denominator == 0.0f ? -INFINITY : (x.base + log2f(x.denominator)) * ln2;
    }
  }

  /// Takes the results out of the codec's basis by a matrix, to `[vector, width]`; null where it
  /// has none here. By all threads, which have met before and meet after where it has.
  [[nodiscard]] __device__ __forceinline__ const float* turn_results(const CodecContext& context,
                                                                     int count) const {
    if constexpr (HasDenseBasis<ValueCodec>) {
      const DenseTurn turn = ValueCodec::dense_turn(context, Turn::from_basis);
      if (turn.matrix == nullptr) return nullptr;
      float* to = shared.sums[0][0];
      turn_apart<width>(turn.matrix, shared.result[0], count, to);
      return to;
    }
    return nullptr;
  }

  /// Takes a vector out of the codec's basis, if it is not `turned`, and stores it, by one warp.
  __device__ __forceinline__ void store(const Segment& s, const CodecContext& context,
                                        const float* turned, int v) {
    float x[lane_channels];
    const float* from = turned == nullptr ? shared.result[v] : turned + v * width;
#pragma unroll
    for (int k = 0; k < lane_channels; ++k) {
      const int c = lane.index + 32 * k;
      x[k] = c < width ? from[c] : 0.0f;
    }
    if (turned == nullptr) {
      turn_warp<PlainBasis<ValueCodec>, width, false>(context, x, shared.result[v], lane.index);
    }
    const int row = row_of(s, v);
    const int head = head_of(s, v, row);
    const MutableHeadRows& out = call.output;
    const std::int64_t at = std::int64_t{s.row0 + row} * out.row_stride + head * out.head_stride;
    if (out.scalar == Scalar::f32) {
      store_channels(static_cast<float*>(out.data) + at, x, [](float y) { return y; });
    } else if (out.scalar == Scalar::f16) {
      store_channels(static_cast<F16*>(out.data) + at, x, to_f16_saturating);
    } else {
      store_channels(static_cast<BF16*>(out.data) + at, x, to_bf16);
    }
  }
  template <class T, class Round>
  __device__ __forceinline__ void store_channels(T* to, const float (&x)[lane_channels],
                                                 Round&& round) const {
#pragma unroll
    for (int k = 0; k < lane_channels; ++k) {
      const int c = lane.index + 32 * k;
      if (c < width) to[c] = round(x[k]);
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
