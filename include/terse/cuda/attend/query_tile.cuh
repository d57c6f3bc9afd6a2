/// Queries of a tile: turned into the codec's basis, scaled, rounded to fp16, put where the readers
/// take their operands from.
#pragma once

#include <cmath>
#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/kernel_context.cuh"
#include "terse/cuda/warp/basis.cuh"
#include "terse/cuda/warp/dense_turn.cuh"
#include "terse/cuda/warp/prefetch.cuh"
#include "terse/policy/calibration.hpp"

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
  using KeyCodec = typename Policy::key_codec;

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

  /// Brings the matrices that turn a segment's queries and results into the second-level cache.
  __device__ __forceinline__ void prefetch_matrices(const Segment& s) const {
    constexpr int bytes = width * width * static_cast<int>(sizeof(float));
    if constexpr (HasDenseBasis<KeyCodec>) {
      const CodecContext context = this->context(Side::key, s.unit);
      const float* matrix = KeyCodec::dense_turn(context, Turn::query_to_basis).matrix;
      if (matrix != nullptr) prefetch_together(matrix, bytes);
    }
    using ValueCodec = typename Policy::value_codec;
    if constexpr (HasDenseBasis<ValueCodec> && Config::reads_values) {
      const CodecContext context = this->context(Side::value, s.unit);
      const float* matrix = ValueCodec::dense_turn(context, Turn::from_basis).matrix;
      if (matrix != nullptr) prefetch_together(matrix, bytes);
    }
  }

  /// Where store_queries finds queries that a matrix has turned, `[vector, width]`.
  [[nodiscard]] __device__ __forceinline__ float* turned_queries() const {
    static_assert(warps >= 2);
    return shared.sums[1][0];
  }
  /// Turns a segment's queries by a matrix, if the codec has one here. By all threads, which have
  /// met before and meet after where it has.
  [[nodiscard]] __device__ __forceinline__ bool turn_by_matrix(const Segment& s,
                                                               const CodecContext& context,
                                                               const RawQueries& raw) const {
    if constexpr (HasDenseBasis<KeyCodec>) {
      const DenseTurn turn = KeyCodec::dense_turn(context, Turn::query_to_basis);
      if (turn.matrix == nullptr) return false;
#pragma unroll
      for (int i = 0; i < own_vectors; ++i) {
        const int v = warp + i * warps;
        if (v >= vectors) break;
#pragma unroll
        for (int k = 0; k < lane_channels; ++k) {
          const int c = lane.index + 32 * k;
          if (c < width) shared.sums[0][v][c] = query_number(raw.bits[i][k]) * call.scale;
        }
      }
      __syncthreads();
      turn_apart<width>(turn.matrix, shared.sums[0][0], s.vectors, turned_queries());
      return true;
    }
    return false;
  }

  /// Turns, scales and stores a segment's queries as fp16 below 1, and sets `norm`.
  __device__ __forceinline__ void store_queries(const Segment& s, const RawQueries& raw) {
    const CodecContext context = this->context(Side::key, s.unit);
    const bool is_turned = turn_by_matrix(s, context, raw);
#pragma unroll
    for (int i = 0; i < own_vectors; ++i) {
      const int v = warp + i * warps;
      if (v >= vectors) break;
      float peak = 0.0f, x[lane_channels];
#pragma unroll
      for (int k = 0; k < lane_channels; ++k) x[k] = query_number(raw.bits[i][k]) * call.scale;
      if constexpr (Base::adds_offsets) {
        const float offset =
            query_offset_warp<KeyCodec, width>(context, x, shared.sums[warp][0], lane.index);
        if (lane.index == 0) shared.offsets[v] = offset;
      }
      if (is_turned) {
#pragma unroll
        for (int k = 0; k < lane_channels; ++k) {
          const int c = lane.index + 32 * k;
          x[k] = c < width && v < s.vectors ? turned_queries()[v * width + c] : 0.0f;
        }
      } else {
        turn_warp<PlainBasis<KeyCodec>, width, true>(context, x, shared.sums[warp][0], lane.index);
      }
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
