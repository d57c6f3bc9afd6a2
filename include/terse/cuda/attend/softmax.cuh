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
  float base[Tiles][2];   // of the lane's columns, log2 units
  float limit[Tiles][2];  // softmax_ceiling once a logit was seen, before that below everything

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      base[n][0] = base[n][1] = 0.0f;
      limit[n][0] = limit[n][1] = -FLT_MAX;
    }
  }

  /// Moves bases so that `s [tile, m-tile, 4]`, which is relative to them, stays below the ceiling.
  /// `scale(n, c0, c1)` multiplies the sums of a tile's columns.
  template <int MTiles, class Scale>
  __device__ __forceinline__ void settle(float (&s)[Tiles][MTiles][4], Scale&& scale) {
    float high[Tiles][2];
    bool moves = false;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        high[n][i] = fmaxf(s[n][0][i], s[n][0][2 + i]);
#pragma unroll
        for (int m = 1; m < MTiles; ++m) {
          high[n][i] = fmaxf(high[n][i], fmaxf(s[n][m][i], s[n][m][2 + i]));
        }
        moves = moves || high[n][i] > limit[n][i];
      }
    }
    if (!__any_sync(~0u, moves)) return;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      float factor[2], shift[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = high[n][i];
#pragma unroll
        for (int d = 4; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
        const bool moved = x > limit[n][i];
        const bool first = limit[n][i] < 0.0f;
        shift[i] = moved ? x - softmax_floor : 0.0f;
        factor[i] = moved && !first ? exp2_approximate(-shift[i]) : 1.0f;
        limit[n][i] = moved ? softmax_ceiling : limit[n][i];
        base[n][i] += shift[i];
      }
#pragma unroll
      for (int m = 0; m < MTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][m][i] -= shift[i & 1];
      }
      scale(n, factor[0], factor[1]);
    }
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
