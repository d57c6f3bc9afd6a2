/// How deep a warp reads the channels and the tokens of a block that is stored as planes: the rule
/// of quant/plane_plan.hpp, decided by all lanes together.
///
/// Lane l decides for channels l, l + 32, ..., and lane (g, t) for tokens 8g + 2t and 8g + 2t + 1.
/// Plans are ballots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/plane_reading.hpp"
#include "terse/policy/record.hpp"
#include "terse/quant/plane_plan.hpp"
#include "terse/quant/planes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Which planes of which channels are read.
template <class Codec, int Width>
struct KeyPlan {
  static constexpr int words = ceil_div(Width, 32);
  static constexpr int planes = Codec::num_planes;
  unsigned reads[words][planes];  ///< bit c % 32 of word c / 32

  /// Leaves out the first half of the channels: the second half takes its place.
  __device__ __forceinline__ void drop_half() {
    static_assert(words % 2 == 0);
#pragma unroll
    for (int w = 0; w < words / 2; ++w) {
#pragma unroll
      for (int p = 0; p < planes; ++p) reads[w][p] = reads[w + words / 2][p];
    }
  }
  /// `wants(word, plane)`: the calling lane's decisions. By all lanes.
  template <class Wants>
  __device__ __forceinline__ void decide(Wants&& wants) {
#pragma unroll
    for (int w = 0; w < words; ++w) {
#pragma unroll
      for (int p = 0; p < planes; ++p) reads[w][p] = __ballot_sync(~0u, wants(w, p));
    }
  }
  [[nodiscard]] __device__ __forceinline__ int bytes() const {
    int sum = Width * Codec::read_bytes(0, Width);
#pragma unroll
    for (int w = 0; w < words; ++w) {
#pragma unroll
      for (int p = 0; p < planes; ++p) sum += __popc(reads[w][p]) * Codec::run_bytes(p, Width);
    }
    return sum;
  }
};

/// What the calling lane knows of its channels for a segment: the largest magnitude of the queries,
/// in units of log2 of a logit.
template <int Width>
struct KeyWeights {
  static constexpr int words = ceil_div(Width, 32);
  float query[words];

  /// `queries [vectors, stride]` as products take them, `norms [vectors]` undoes their scaling.
  __device__ void load(const __half* queries, int stride, const float* norms, int vectors,
                       const Lane& lane) {
#pragma unroll
    for (int w = 0; w < words; ++w) query[w] = 0.0f;
#pragma unroll 1
    for (int v = 0; v < vectors; ++v) {
#pragma unroll
      for (int w = 0; w < words; ++w) {
        const float x = __half2float(queries[v * stride + 32 * w + lane.index]);
        query[w] = fmaxf(query[w], fabsf(x) * norms[v]);
      }
    }
  }
};

/// Exponents of the calling lane's channels.
template <int Width>
struct KeyExponents {
  static constexpr int words = ceil_div(Width, 32);
  unsigned exponents[words];

  __device__ __forceinline__ void load(const std::byte* from, const Lane& lane) {
#pragma unroll
    for (int w = 0; w < words; ++w) {
      exponents[w] = __ldcg(reinterpret_cast<const unsigned char*>(from) + (32 * w + lane.index));
    }
  }
};

/// The unit in the last place of fp16 numbers with a largest exponent field.
__device__ __forceinline__ float exponent_unit(int exponent) {
  return __uint_as_float(static_cast<unsigned>(max(exponent, 1) + (127 - 25)) << 23);
}

/// `tolerance`: of a logit, in units of log2. By all lanes.
template <class Codec, int Width>
__device__ __forceinline__ KeyPlan<Codec, Width> plan_keys(const KeyWeights<Width>& weights,
                                                           const KeyExponents<Width>& exponents,
                                                           float tolerance) {
  using Plan = KeyPlan<Codec, Width>;
  static_assert(Width % 32 == 0 && Codec::runs_together(Width) == 2);
  float own[Plan::words];
#pragma unroll
  for (int w = 0; w < Plan::words; ++w) {
    own[w] = weights.query[w] * exponent_unit(static_cast<int>(exponents.exponents[w]));
    own[w] = fmaxf(own[w], __shfl_xor_sync(~0u, own[w], 1));
  }
  // Errors of the larger shares, of all channels.
  constexpr int larger = num_key_shares - 1;
  const float even = tolerance * (1.0f / static_cast<float>(Width));
  float errors[larger];
#pragma unroll
  for (int i = 0; i < larger; ++i) {
    errors[i] = 0.0f;
    const float share = even * static_cast<float>(key_share_times(i));
#pragma unroll
    for (int w = 0; w < Plan::words; ++w) errors[i] += error_within<Codec>(own[w], share);
  }
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
#pragma unroll
    for (int i = 0; i < larger; ++i) errors[i] += __shfl_xor_sync(~0u, errors[i], d);
  }
  float share = even;
#pragma unroll
  for (int i = larger - 1; i >= 0; --i) {
    if (errors[i] <= tolerance) share = even * static_cast<float>(key_share_times(i));
  }
  Plan plan;
  constexpr PlaneErrors plane_error = plane_errors<Codec>();
  plan.decide([&](int w, int p) { return own[w] * plane_error.of[p] > share; });
  return plan;
}

/// Which planes of which tokens are read.
template <class Codec>
struct ValuePlan {
  static constexpr int planes = Codec::num_planes;
  unsigned reads[2][planes];  ///< bit t / 2 of word t % 2

  /// `wants(i, plane)`: the calling lane's decisions, of token 8g + 2t + i. By all lanes.
  template <class Wants>
  __device__ __forceinline__ void decide(Wants&& wants) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int p = 0; p < planes; ++p) reads[i][p] = __ballot_sync(~0u, wants(i, p));
    }
  }
  [[nodiscard]] __device__ __forceinline__ int bytes(int width) const {
    int sum = block_tokens * Codec::read_bytes(0, width);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int p = 0; p < planes; ++p) sum += __popc(reads[i][p]) * Codec::run_bytes(p, width);
    }
    return sum;
  }
};

/// The sums of exponentials of the lane's columns so far, a little less than they are: what
/// probabilities are at most follows from it, since sums only grow.
template <int Tiles>
struct LeastSums {
  float sums[Tiles][2] = {};

  __device__ __forceinline__ void scale(int n, float c0, float c1) {
    sums[n][0] *= c0;
    sums[n][1] *= c1;
  }
  /// Adds a block's exponentials `pairs [tile, m-tile, half]` of two columns.
  __device__ __forceinline__ void add(const std::uint32_t (&pairs)[Tiles][4][2]) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      __half2 sum = __float2half2_rn(0.0f);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        sum = __hadd2(sum, __hadd2(half2_of(pairs[n][m][0]), half2_of(pairs[n][m][1])));
      }
#pragma unroll
      for (int d = 4; d < 32; d *= 2) {
        sum = __hadd2(sum, half2_of(__shfl_xor_sync(~0u, bits_of(sum), d)));
      }
      // Seven roundings to 11 bits.
      sums[n][0] = __fmaf_rn(0.995f, __low2float(sum), sums[n][0]);
      sums[n][1] = __fmaf_rn(0.995f, __high2float(sum), sums[n][1]);
    }
  }

  __device__ __forceinline__ static __half2 half2_of(std::uint32_t x) {
    return *reinterpret_cast<const __half2*>(&x);
  }
  __device__ __forceinline__ static std::uint32_t bits_of(__half2 x) {
    return *reinterpret_cast<const std::uint32_t*>(&x);
  }
};

/// For `vectors` columns; those beyond have no query. `exponents`: of the lane's tokens 8g + 2t
/// and, 8 bits higher, 8g + 2t + 1. `tokens`: no fewer than are read decoded.
template <class Codec, int Width, int Tiles>
__device__ __forceinline__ ValuePlan<Codec> plan_values(const std::uint32_t (&pairs)[Tiles][4][2],
                                                        const LeastSums<Tiles>& least, int vectors,
                                                        std::uint32_t exponents, float tokens,
                                                        float tolerance, const Lane& lane) {
  float inverse[Tiles][2], p[8];
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = least.sums[n][i];
      inverse[n][i] = 8 * n + 2 * lane.t + i < vectors && sum > 0.0f ? __frcp_ru(sum) : 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) {  // token 8g + k
    p[k] = 0.0f;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const __half2 pair = LeastSums<Tiles>::half2_of(pairs[n][k / 2][k % 2]);
      p[k] =
          fmaxf(p[k], fmaxf(__low2float(pair) * inverse[n][0], __high2float(pair) * inverse[n][1]));
    }
  }
  // Over the four lanes of a row, each of which is left with two tokens.
  const bool upper = (lane.t & 2) != 0, odd = (lane.t & 1) != 0;
  float four[4], own[2];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float given = __shfl_xor_sync(~0u, upper ? p[k] : p[k + 4], 2);
    four[k] = fmaxf(upper ? p[k + 4] : p[k], given);
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float given = __shfl_xor_sync(~0u, odd ? four[k] : four[k + 2], 1);
    own[k] = fmaxf(odd ? four[k + 2] : four[k], given);
  }
  const int e[2] = {static_cast<int>(exponents & 255u), static_cast<int>(exponents >> 8 & 255u)};
  const int highest = static_cast<int>(__reduce_max_sync(
      ~0u, static_cast<unsigned>(max(own[0] > 0.0f ? e[0] : 0, own[1] > 0.0f ? e[1] : 0))));
  constexpr PlaneErrors plane_error = plane_errors<Codec>();
  const float peak = exponent_unit(highest) * plane_error.of[0];
  ValuePlan<Codec> plan;
  const auto wants = [&](int i, int plane) {
    return own[i] * exponent_unit(e[i]) * plane_error.of[plane] >
           value_share(own[i], tokens, peak, tolerance);
  };
  static_assert(Codec::runs_together(Width) <= 2);
  plan.decide([&](int i, int plane) {
    return Codec::runs_together(Width) == 1 ? wants(i, plane) : wants(0, plane) || wants(1, plane);
  });
  return plan;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
