/// Logits and value sums of 16 exact tokens, read straight from global memory: a quarter of a
/// tail block, or the sinks.
///
/// Row g of the one m-tile is token 4(g / 2) + g % 2, and row g + 8 the second one after it, so
/// that transposed probabilities meet four neighbouring tokens of a lane's values.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/plain_blocks.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <int Width, int Tiles>
struct ExactTokens : PlainSums<Width, Tiles> {
  static constexpr int steps = Width / 16;
  using typename PlainSums<Width, Tiles>::Sums;
  using PlainSums<Width, Tiles>::runs;

  __device__ static constexpr int token(int half, int g) { return 4 * (g / 2) + g % 2 + 2 * half; }
  /// Everything of 16 tokens that a lane reads, in flight together.
  struct Loads {
    uint2 keys[steps][4];   // four tokens of channels 16k + {2t, 2t+1, 2t+8, 2t+9}
    uint4 values[runs][4];  // eight channels of tokens 4t ... 4t+3
  };

  /// `keys [channel, pitch tokens]`, `values [token, channel]`.
  __device__ __forceinline__ static Loads load(const std::byte* keys, int pitch,
                                               const std::byte* values) {
    const Lane lane = this_lane();
    const auto* tokens = reinterpret_cast<const uint2*>(keys + 8 * (lane.g / 2));
    Loads x;
#pragma unroll
    for (int k = 0; k < steps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = 16 * k + 2 * lane.t + i % 2 + i / 2 * 8;
        x.keys[k][i] = tokens[c * (pitch / 4)];
      }
    }
#pragma unroll
    for (int run = 0; run < runs; ++run) {
      int c = 64 * run + 8 * lane.g;
      if (Width % 64 != 0 && c >= Width) c = Width - 8;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x.values[run][i] =
            *reinterpret_cast<const uint4*>(values + ((4 * lane.t + i) * Width + c) * 2);
      }
    }
    return x;
  }

  /// s = logits in units of log2.
  __device__ __forceinline__ static void logits(const Loads& x, const __half* q, int stride,
                                                const float (&norm)[Tiles][2],
                                                float (&s)[Tiles][1][4]) {
    const Lane lane = this_lane();
    const unsigned select = lane.g % 2 == 0 ? 0x5410u : 0x7632u;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const auto* row = reinterpret_cast<const std::uint32_t*>(q + (n * 8 + lane.g) * stride);
      float(&c)[4] = s[n][0];
      c[0] = c[1] = c[2] = c[3] = 0.0f;
#pragma unroll
      for (int k = 0; k < steps; ++k) {
        multiply_add(c, __byte_perm(x.keys[k][0].x, x.keys[k][1].x, select),
                     __byte_perm(x.keys[k][0].y, x.keys[k][1].y, select),
                     __byte_perm(x.keys[k][2].x, x.keys[k][3].x, select),
                     __byte_perm(x.keys[k][2].y, x.keys[k][3].y, select), row[8 * k + lane.t],
                     row[8 * k + 4 + lane.t]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] *= norm[n][i & 1];
    }
  }

  /// sums += p * values, p = {tokens 4t, 4t+1; tokens 4t+2, 4t+3}.
  __device__ __forceinline__ static void add(const Loads& x, const std::uint32_t (&p)[Tiles][2],
                                             Sums& sums) {
    constexpr std::uint32_t one = 0x3c003c00u;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      multiply_add(sums.ones[n], one, one, one, one, p[n][0], p[n][1]);
    }
#pragma unroll
    for (int run = 0; run < runs; ++run) {
      const uint4(&v)[4] = x.values[run];
      const std::uint32_t w[4][4] = {{v[0].x, v[0].y, v[0].z, v[0].w},
                                     {v[1].x, v[1].y, v[1].z, v[1].w},
                                     {v[2].x, v[2].y, v[2].z, v[2].w},
                                     {v[3].x, v[3].y, v[3].z, v[3].w}};
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
          multiply_add(sums.values[n][4 * run + m], __byte_perm(w[0][m], w[1][m], 0x5410),
                       __byte_perm(w[0][m], w[1][m], 0x7632), __byte_perm(w[2][m], w[3][m], 0x5410),
                       __byte_perm(w[2][m], w[3][m], 0x7632), p[n][0], p[n][1]);
        }
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
