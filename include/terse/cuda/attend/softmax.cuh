/// The running softmax of one warp over its blocks: exponentials relative to a base that moves only
/// when a logit rises far above it.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Logits are kept below base + softmax_ceiling (log2 units), and a new base lies softmax_floor
/// below the largest logit: probabilities in fp16 stay in 2^4 ... 2^8 at their largest, where
/// neither products with small scales vanish nor those with scales up to 255 overflow.
inline constexpr float softmax_ceiling = 8.0f;
inline constexpr float softmax_floor = 4.0f;

template <int Tiles>
struct RunningSoftmax {
  float base[Tiles][2];     // of the lane's columns, log2 units
  bool has_base[Tiles][2];  // whether a logit was seen, or none will be
  std::uint32_t not_all;    // sign bits of both halves, until all columns have a base

  /// For `vectors` columns; lane `t` of a group has columns 8n + 2t and 8n + 2t + 1. Those beyond
  /// the vectors, whose queries are zero, keep the base 0.
  __device__ __forceinline__ void start(int vectors, int t) {
    not_all = 0x80008000u;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        base[n][i] = 0.0f;
        has_base[n][i] = 8 * n + 2 * t + i >= vectors;
      }
    }
  }

  /// p `[tile, m-tile, half]` = 2^s of pairs of columns as fp16, s `[tile, m-tile, 4]` relative to
  /// the base. Moves bases, and s with them, so that none exceeds the ceiling; `scale(n, c0, c1)`
  /// multiplies the sums of a tile's columns.
  template <int MTiles, class Scale>
  __device__ __forceinline__ void exponentials(float (&s)[Tiles][MTiles][4],
                                               std::uint32_t (&p)[Tiles][MTiles][2],
                                               Scale&& scale) {
    raise(s, p);
    std::uint32_t high = p[0][0][0];
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int m = 0; m < MTiles; ++m) high = max_half2(high, max_half2(p[n][m][0], p[n][m][1]));
    }
    // The sum sets the sign of halves that are above the ceiling.
    const std::uint32_t exceeds = ((high + above_ceiling) | not_all) & 0x80008000u;
    if (!__any_sync(~0u, exceeds != 0)) return;
    move(s, scale);
    raise(s, p);
  }

 private:
  static constexpr std::uint32_t ceiling_half = 0x5c00;  // 2^softmax_ceiling
  static constexpr std::uint32_t above_ceiling = (0x7fffu - ceiling_half) * 0x10001u;
  static_assert(softmax_ceiling == 8.0f);

  template <int MTiles>
  __device__ __forceinline__ static void raise(const float (&s)[Tiles][MTiles][4],
                                               std::uint32_t (&p)[Tiles][MTiles][2]) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int m = 0; m < MTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          p[n][m][half] = pack_half2(exp2_approximate(s[n][m][2 * half]),
                                     exp2_approximate(s[n][m][2 * half + 1]));
        }
      }
    }
  }

  template <int MTiles, class Scale>
  __device__ __forceinline__ void move(float (&s)[Tiles][MTiles][4], Scale&& scale) {
    bool all = true;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      float factor[2], shift[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = fmaxf(s[n][0][i], s[n][0][2 + i]);
#pragma unroll
        for (int m = 1; m < MTiles; ++m) x = fmaxf(x, fmaxf(s[n][m][i], s[n][m][2 + i]));
#pragma unroll
        for (int d = 4; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
        const bool moved = x > (has_base[n][i] ? softmax_ceiling : -FLT_MAX);
        shift[i] = moved ? x - softmax_floor : 0.0f;
        factor[i] = moved && has_base[n][i] ? exp2_approximate(-shift[i]) : 1.0f;
        has_base[n][i] = has_base[n][i] || moved;
        all = all && has_base[n][i];
        base[n][i] += shift[i];
      }
#pragma unroll
      for (int m = 0; m < MTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][m][i] -= shift[i & 1];
      }
      scale(n, factor[0], factor[1]);
    }
    not_all = all ? 0u : 0x80008000u;
  }
};

/// Logits x (log2 units) after a soft cap of `cap` (natural units): tanh as 1 - 2 / (e^2y + 1),
/// whose absolute error of 1e-7 * cap is what logits can bear.
__device__ __forceinline__ float soft_capped(float x, float cap) {
  constexpr float log2e = 1.4426950408889634f;
  const float power = exp2_approximate(2.0f * x / cap);
  return cap * log2e * (1.0f - __fdividef(2.0f, power + 1.0f));
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
