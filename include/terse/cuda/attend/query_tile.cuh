/// Queries of a tile: turned into the codec's basis, scaled, rounded to fp16, put where the readers
/// take their operands from.
#pragma once

#include <cmath>
#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/kernel_context.cuh"
#include "terse/cuda/warp/basis.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct QueryTile : KernelContext<Config> {
  using Base = KernelContext<Config>;
  using Base::Base;
  using Base::call;
  using Base::head_of;
  using Base::lane;
  using Base::lane_channels;
  using Base::norm;
  using Base::own_vectors;
  using Base::row_of;
  using Base::shared;
  using Base::tiles;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using Base::width;
  using typename Base::Policy;

  /// A warp's share of a tile's queries, lane l holding channels l, l + 32, ... as they lie in
  /// memory: nothing waits for them before store_queries.
  struct RawQueries {
    std::uint32_t bits[own_vectors][lane_channels];
  };

  template <class Bits>
  __device__ __forceinline__ void fetch_queries(const Segment& s, const Bits* data,
                                                RawQueries& raw) const {
#pragma unroll
    for (int i = 0; i < own_vectors; ++i) {
      const int v = warp + i * warps;
      const int row = row_of(s, v);
      const Bits* vector = data + (s.row0 + row) * call.queries.row_stride +
                           head_of(s, v, row) * call.queries.head_stride;
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) {
        const int c = lane.index + 32 * k;
        raw.bits[i][k] = v < s.vectors && c < width ? vector[c] : 0u;
      }
    }
  }

  /// Begins to load a segment's queries.
  __device__ __forceinline__ void fetch_queries(const Segment& s, RawQueries& raw) const {
    if (call.queries.scalar == Scalar::f32) {
      fetch_queries(s, static_cast<const std::uint32_t*>(call.queries.data), raw);
    } else {
      fetch_queries(s, static_cast<const std::uint16_t*>(call.queries.data), raw);
    }
  }

  /// One number of the queries' type as fp32.
  [[nodiscard]] __device__ __forceinline__ float query_number(std::uint32_t bits) const {
    const auto half = static_cast<std::uint16_t>(bits);
    switch (call.queries.scalar) {
      case Scalar::f32:
        return __uint_as_float(bits);
      case Scalar::f16:
        return to_float(F16{half});
      default:
        return to_float(BF16{half});
    }
  }

  /// Turns, scales and stores the tile's queries as fp16 below 1, and sets `norm`.
  __device__ __forceinline__ void store_queries(const RawQueries& raw) {
#pragma unroll
    for (int i = 0; i < own_vectors; ++i) {
      const int v = warp + i * warps;
      if (v >= vectors) break;
      float peak = 0.0f, x[lane_channels];
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) x[k] = query_number(raw.bits[i][k]) * call.scale;
      turn_warp<typename Policy::key_codec, width, true>(Side::key, x, shared.sums[warp][0],
                                                         lane.index);
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) peak = fmaxf(peak, fabsf(x[k]));
#pragma unroll
      for (int d = 1; d < 32; d *= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, d));
      int exponent = static_cast<int>(__float_as_uint(peak) >> 23) - 126;
      exponent = peak == 0.0f || exponent > 120 ? 0 : (exponent < -100 ? -100 : exponent);
      const float inverse = __uint_as_float(static_cast<unsigned>(127 - exponent) << 23);
      if (lane.index == 0) {
        shared.norms[v] = __uint_as_float(static_cast<unsigned>(127 + exponent) << 23);
      }
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) {
        const int c = lane.index + 32 * k;
        if (c < width) shared.queries[v][c] = __float2half_rn(x[k] * inverse);
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      norm[n][0] = shared.norms[8 * n + 2 * lane.t];
      norm[n][1] = shared.norms[8 * n + 2 * lane.t + 1];
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
