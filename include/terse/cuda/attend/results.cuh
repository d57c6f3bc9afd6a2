/// From the sums of warps to output rows: over the warps of a thread block, then over the thread
/// blocks of a unit, in the last of them to arrive.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/prefix_tokens.cuh"
#include "terse/cuda/warp/basis.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct Results : PrefixTokens<Config> {
  using Base = PrefixTokens<Config>;
  using Base::Base;
  using Base::call;
  using Base::group;
  using Base::lane;
  using Base::lane_channels;
  using Base::quad;
  using Base::row_of;
  using Base::shared;
  using Base::slot;
  using Base::slots;
  using Base::thread_vectors;
  using Base::threads;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using Base::width;
  using typename Base::Policy;
  static constexpr int merge_batch = 18;  ///< partial results read at once

  /// Four channels of some of the vectors: what a thread adds up over warps and thread blocks.
  struct Total {
    float4 sums[thread_vectors];
    float base[thread_vectors], denominator[thread_vectors];
  };

  /// Adds what the warps have published to a cleared `total`.
  __device__ void absorb(const Segment& s, Total& total) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < thread_vectors; ++k) {
      const int v = slot + k * slots;
      if (v >= s.vectors || slot >= slots) continue;
      float2 states[warps];
      float high = -INFINITY;
#pragma unroll
      for (int w = 0; w < warps; ++w) {
        states[w] = shared.states[w][v];
        high = states[w].y == 0.0f ? high : fmaxf(high, states[w].x);
      }
      total.base[k] = high;
#pragma unroll
      for (int w = 0; w < warps; ++w) {
        const float factor = states[w].y == 0.0f ? 0.0f : exp2_approximate(states[w].x - high);
        total.denominator[k] = __fmaf_rn(states[w].y, factor, total.denominator[k]);
        add_quad(total.sums[k], *reinterpret_cast<const float4*>(&shared.sums[w][v][4 * quad]),
                 factor);
      }
    }
  }

  __device__ static void clear(Total& total) {
#pragma unroll
    for (int k = 0; k < thread_vectors; ++k) {
      total.base[k] = -INFINITY;
      total.denominator[k] = 0.0f;
      total.sums[k] = {0.0f, 0.0f, 0.0f, 0.0f};
    }
  }

  __device__ __forceinline__ static void scale_quad(float4& x, float factor) {
    x.x *= factor;
    x.y *= factor;
    x.z *= factor;
    x.w *= factor;
  }
  __device__ __forceinline__ static void add_quad(float4& x, const float4& y, float factor) {
    x.x = __fmaf_rn(y.x, factor, x.x);
    x.y = __fmaf_rn(y.y, factor, x.y);
    x.z = __fmaf_rn(y.z, factor, x.z);
    x.w = __fmaf_rn(y.w, factor, x.w);
  }

  /// Divides, leaves the basis and stores the tile's rows.
  __device__ void store(const Segment& s, Total& total) {
    constexpr float log2e = 1.4426950408889634f, ln2 = 0.69314718055994531f;
#pragma unroll
    for (int k = 0; k < thread_vectors; ++k) {
      const int v = slot + k * slots;
      if (v >= s.vectors || slot >= slots) continue;
      const int row = row_of(s, v);
      const int head = s.unit * group() + s.first_vector + v - row * group();
      float base = total.base[k], denominator = total.denominator[k];
      if (call.params.sink_logits != nullptr) {
        const float sink = call.params.sink_logits[head] * log2e;
        const float high = fmaxf(base, sink);
        if (high > -INFINITY) {
          const float factor = denominator == 0.0f ? 0.0f : exp2f(base - high);
          denominator = denominator * factor + exp2f(sink - high);
          base = high;
          scale_quad(total.sums[k], factor);
        }
      }
      scale_quad(total.sums[k], denominator == 0.0f ? 0.0f : 1.0f / denominator);
      *reinterpret_cast<float4*>(&shared.result[v][4 * quad]) = total.sums[k];
      if (call.lse_ln != nullptr && quad == 0) {
        call.lse_ln[std::int64_t{s.row0 + row} * call.r.shape.query_heads + head] =
            denominator == 0.0f ? -INFINITY : (base + log2f(denominator)) * ln2;
      }
    }
    __syncthreads();
    for (int v = warp; v < s.vectors; v += warps) {
      float x[lane_channels];
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) {
        const int c = lane.index + 32 * k;
        x[k] = c < width ? shared.result[v][c] : 0.0f;
      }
      turn_warp<typename Policy::value_codec, width, false>(Side::value, x, shared.result[v],
                                                            lane.index);
      const std::int64_t row = s.row0 + row_of(s, v);
      const int head = s.unit * group() + (s.first_vector + v) % group();
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) {
        const int c = lane.index + 32 * k;
        if (c < width) call.output.put(row, head, c, x[k]);
      }
    }
    __syncthreads();
  }

  /// Where thread block `b` leaves its share of a segment's unit.
  [[nodiscard]] __device__ static std::size_t partial_of(const Segment& s, int b) {
    return static_cast<std::size_t>(2 * b + (b == s.first_block ? 1 : 0)) * vectors;
  }

  /// total = what all thread blocks of a unit have left, in their order.
  __device__ void merge_partials(const Segment& s, Total& total) {
#pragma unroll
    for (int k = 0; k < thread_vectors; ++k) {
      const int v = slot + k * slots;
      if (v >= s.vectors || slot >= slots) continue;
      float base = -INFINITY, denominator = 0.0f;
      float4 sums = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int begin = s.first_block; begin <= s.last_block; begin += merge_batch) {
        float4 x[merge_batch];
        float2 states[merge_batch];
#pragma unroll
        for (int i = 0; i < merge_batch; ++i) {  // all loads in flight at once
          const int b = begin + i <= s.last_block ? begin + i : s.last_block;
          const std::size_t from = partial_of(s, b) + v;
          states[i] = __ldcg(call.partial_states + from);
          x[i] = __ldcg(reinterpret_cast<const float4*>(call.partial_sums + from * width) + quad);
        }
        float high = base;
#pragma unroll
        for (int i = 0; i < merge_batch; ++i) {
          if (begin + i > s.last_block) states[i].y = 0.0f;
          high = states[i].y == 0.0f ? high : fmaxf(high, states[i].x);
        }
        const float old_factor = denominator == 0.0f ? 0.0f : exp2_approximate(base - high);
        denominator *= old_factor;
        scale_quad(sums, old_factor);
        base = high;
#pragma unroll
        for (int i = 0; i < merge_batch; ++i) {
          const float factor = states[i].y == 0.0f ? 0.0f : exp2_approximate(states[i].x - high);
          denominator = __fmaf_rn(states[i].y, factor, denominator);
          add_quad(sums, x[i], factor);
        }
      }
      total.base[k] = base;
      total.denominator[k] = denominator;
      total.sums[k] = sums;
    }
  }

  /// Writes this thread block's share of a unit; true in the last thread block to do so, with
  /// `total` that of all.
  __device__ bool meet(const Segment& s, Total& total) {
    const std::size_t own = partial_of(s, static_cast<int>(blockIdx.x));
#pragma unroll
    for (int k = 0; k < thread_vectors; ++k) {
      const int v = slot + k * slots;
      if (v >= s.vectors || slot >= slots) continue;
      reinterpret_cast<float4*>(call.partial_sums + (own + v) * width)[quad] = total.sums[k];
      if (quad == 0) call.partial_states[own + v] = {total.base[k], total.denominator[k]};
    }
    if (!arrives_last(call, s, &shared.is_last)) return false;
    merge_partials(s, total);
    return true;
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
