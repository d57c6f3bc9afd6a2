/// Logits and value sums of 16 tokens of a tail of 8-bit codes, read straight from global memory: a
/// quarter of a block. Rows and channels lie as in exact_tokens.cuh, so that sums are shared.
///
/// A word holds four neighbouring codes of a lane in the order 0, 2, 1, 3: of a token's channels
/// (keys) or of a channel's tokens (values). Its bytes under two masks are two operand registers.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/exact_tokens.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Codecs of tails that attention reads, besides Identity: 8 bits, one factor a token.
template <class C>
concept TailCodesCodec =
    AffineCodec<C> && C::affine_format.bits == 8 &&
    C::affine_format.granularity == Granularity::per_token&& C::affine_format.group == 0 &&
    !C::affine_format.has_min && C::affine_format.centre == 128.0f;

/// The codes of bytes 0 and 2 of a word, less the centre, as a pair of fp16 numbers.
[[nodiscard]] __device__ __forceinline__ std::uint32_t centred_codes(std::uint32_t word) {
  // From 1024 on the last bit of an fp16 number is worth 1.
  constexpr std::uint32_t from_1024 = 0x64006400u, from_1024_plus_centre = 0x64806480u;
  return subtract_half2((word & 0x00ff00ffu) | from_1024, from_1024_plus_centre);
}

/// What reads 16 tokens of a tail in the form of codec C.
template <class C, int Width, int Tiles>
struct TailTokens {
  static_assert(
      TailCodesCodec<C>,
      "terse::cuda::attend: the device reads tails of 16 bits (Identity) and of 8 (Int8); "
      "use TailCodec<Int8>, or leave it out.");
};
template <int Width, int Tiles>
struct TailTokens<Identity, Width, Tiles> {
  using type = ExactTokens<Width, Tiles>;
};

template <TailCodesCodec Codec, int Width, int Tiles>
struct TailCodes : ExactTokens<Width, Tiles> {
  using Base = ExactTokens<Width, Tiles>;
  using Base::runs;
  using Base::steps;
  using Base::token;
  using typename Base::Sums;

  /// Everything of 16 tokens that a lane reads, in flight together.
  struct Loads {
    std::uint32_t keys[steps][2];  // channels 16k + 4t ... 16k + 4t + 3 of the tokens of both rows
    uint4 values[runs][2];         // tokens 4t ... 4t+3 of eight channels
    __half key_factors[2];
    uint2 value_factors;
  };

  /// `keys`, `values`: the streams in a block of the tail.
  __device__ __forceinline__ static Loads load(const std::byte* keys, const std::byte* values,
                                               int quarter) {
    constexpr std::size_t key_factors = Codec::scales_offset(Side::key, Width);
    constexpr std::size_t value_factors = Codec::scales_offset(Side::value, Width);
    constexpr int key_runs = runs_per_lane(8, Side::key, Width);
    constexpr int value_runs = runs_per_lane(8, Side::value, Width);
    const Lane lane = this_lane();
    Loads x;
    const auto* words = reinterpret_cast<const std::uint32_t*>(keys) + quarter * key_runs * 16;
#pragma unroll
    for (int k = 0; k < steps; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x.keys[k][half] = words[(4 * k + lane.t) * 16 + token(half, lane.g)];
      }
    }
    const auto* factors = reinterpret_cast<const __half*>(keys + key_factors) + 16 * quarter;
#pragma unroll
    for (int half = 0; half < 2; ++half) x.key_factors[half] = factors[token(half, lane.g)];
#pragma unroll
    for (int run = 0; run < runs; ++run) {
      int c = 64 * run + 8 * lane.g;
      if (Width % 64 != 0 && c >= Width) c = Width - 8;
      const auto* from = reinterpret_cast<const uint4*>(
          values + ((c / 16 * value_runs + 4 * quarter + lane.t) * 16 + c % 16) * 4);
      x.values[run][0] = from[0];
      x.values[run][1] = from[1];
    }
    x.value_factors = reinterpret_cast<const uint2*>(values + value_factors)[4 * quarter + lane.t];
    return x;
  }

  /// s = logits in units of log2.
  __device__ __forceinline__ static void logits(const Loads& x, const __half* q, int stride,
                                                const float (&norm)[Tiles][2],
                                                float (&s)[Tiles][1][4]) {
    const Lane lane = this_lane();
    const float factors[2] = {__half2float(x.key_factors[0]), __half2float(x.key_factors[1])};
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const auto* row = reinterpret_cast<const std::uint32_t*>(q + (n * 8 + lane.g) * stride);
      float(&c)[4] = s[n][0];
      c[0] = c[1] = c[2] = c[3] = 0.0f;
#pragma unroll
      for (int k = 0; k < steps; ++k) {
        const std::uint32_t first = x.keys[k][0], second = x.keys[k][1];
        multiply_add(c, centred_codes(first), centred_codes(second), centred_codes(first >> 8),
                     centred_codes(second >> 8), row[8 * k + 2 * lane.t],
                     row[8 * k + 2 * lane.t + 1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] *= norm[n][i & 1] * factors[i / 2];
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
      const uint4(&v)[2] = x.values[run];
      const std::uint32_t words[8] = {v[0].x, v[0].y, v[0].z, v[0].w,
                                      v[1].x, v[1].y, v[1].z, v[1].w};
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const std::uint32_t first = words[2 * m], second = words[2 * m + 1];
        const std::uint32_t operands[4] = {
            multiply_half2(centred_codes(first), x.value_factors.x),
            multiply_half2(centred_codes(second), x.value_factors.x),
            multiply_half2(centred_codes(first >> 8), x.value_factors.y),
            multiply_half2(centred_codes(second >> 8), x.value_factors.y)};
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
          multiply_add(sums.values[n][4 * run + m], operands[0], operands[1], operands[2],
                       operands[3], p[n][0], p[n][1]);
        }
      }
    }
  }
};

template <TailCodesCodec C, int Width, int Tiles>
struct TailTokens<C, Width, Tiles> {
  using type = TailCodes<C, Width, Tiles>;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
