/// The basis of a codec, applied by one warp to a vector that its lanes share.
#pragma once

#include "terse/config.hpp"
#include "terse/cuda/warp/dense_turn.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/cuda/warp/sums.cuh"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Codec>
concept HasHadamard = requires {
  Codec::hadamard_limit;
};

template <class Codec>
concept HasSignedHadamard = requires {
  Codec::signed_hadamard_limit;
};

/// As terse::turn_signs; lane l holds channels l, l + 32, ...
template <int Count>
__device__ __forceinline__ void turn_signs_warp(float (&x)[Count], int lane) {
#pragma unroll
  for (int k = 0; k < Count; ++k) x[k] = turns_sign(lane + 32 * k) ? -x[k] : x[k];
}

/// As terse::hadamard, the same sums in the same order; lane l holds channels l, l + 32, ...
template <int Width, int Size>
__device__ __forceinline__ void hadamard_warp(float (&x)[ceil_div(Width, 32)], int lane) {
  constexpr int count = ceil_div(Width, 32);
#pragma unroll
  for (int half = 1; half < Size; half *= 2) {
    if (half < 32) {
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const float other = __shfl_xor_sync(~0u, x[k], half);
        x[k] = (lane & half) == 0 ? x[k] + other : other - x[k];
      }
    } else {
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const int step = half / 32;
        if ((k & step) == 0) {
          const float a = x[k], b = x[k + step];
          x[k] = a + b;
          x[k + step] = a - b;
        }
      }
    }
  }
  constexpr float norm = hadamard_norm(Size);
#pragma unroll
  for (int k = 0; k < count; ++k) x[k] *= norm;
}

/// The codec's basis where it has no matrix: its own, or its UncalibratedBasis.
template <class Codec>
struct PlainBasisOf {
  using type = Codec;
};
template <HasDenseBasis Codec>
struct PlainBasisOf<Codec> {
  using type = typename Codec::UncalibratedBasis;
  static_assert(HasHadamard<type>, "kernels turn by matrices and by HadamardBasis only");
};
template <class Codec>
using PlainBasis = typename PlainBasisOf<Codec>::type;

/// Whether queries are turned where vectors are.
template <class Codec>
inline constexpr bool turns_queries = HasBasis<Codec> || HasQueryBasis<Codec>;

/// Queries into the codec's basis (Forward) or outputs out of it, where the basis is no matrix.
/// `scratch [Width]` in shared memory is the warp's.
template <class Codec, int Width, bool Forward>
__device__ __forceinline__ void turn_warp(const CodecContext& context,
                                          float (&x)[ceil_div(Width, 32)], float* scratch,
                                          int lane) {
  if constexpr (HasHadamard<Codec>) {
    hadamard_warp<Width, hadamard_size(Width, Codec::hadamard_limit)>(x, lane);
  } else if constexpr (HasSignedHadamard<Codec>) {
    if constexpr (Forward) turn_signs_warp(x, lane);
    hadamard_warp<Width, hadamard_size(Width, Codec::signed_hadamard_limit)>(x, lane);
    if constexpr (!Forward) turn_signs_warp(x, lane);
  } else if constexpr (Forward ? turns_queries<Codec> : HasBasis<Codec>) {
    constexpr int count = ceil_div(Width, 32);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (lane + 32 * k < Width) scratch[lane + 32 * k] = x[k];
    }
    __syncwarp();
    if (lane == 0) {
      if constexpr (!Forward) {
        Codec::from_basis(context, scratch);
      } else if constexpr (HasQueryBasis<Codec>) {
        Codec::query_to_basis(context, scratch);
      } else {
        Codec::to_basis(context, scratch);
      }
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (lane + 32 * k < Width) x[k] = scratch[lane + 32 * k];
    }
    __syncwarp();
  }
}

/// As turn_warp of a query, whatever the basis.
template <class Codec, int Width>
__device__ __forceinline__ void turn_query_warp(const CodecContext& context,
                                                float (&x)[ceil_div(Width, 32)], float* scratch,
                                                int lane) {
  if constexpr (HasDenseBasis<Codec>) {
    const DenseTurn turn = Codec::dense_turn(context, Turn::query_to_basis);
    if (turn.matrix != nullptr) {
      constexpr int count = ceil_div(Width, 32);
      int column[count];
#pragma unroll
      for (int k = 0; k < count; ++k) {
        column[k] = min(lane + 32 * k, Width - 1);
        if (lane + 32 * k < Width) scratch[column[k]] = x[k];
      }
      __syncwarp();
      const float* const from[1] = {scratch};
      float sums[1][count];
      add_matrix_rows<false>(turn.matrix, Width, from, column, sums);
#pragma unroll
      for (int k = 0; k < count; ++k) x[k] = lane + 32 * k < Width ? sums[0][k] : 0.0f;
      __syncwarp();
      return;
    }
  }
  turn_warp<PlainBasis<Codec>, Width, true>(context, x, scratch, lane);
}

/// The product of a query with what was taken off the keys, in all lanes. `scratch` as for
/// turn_warp.
template <class Codec, int Width>
[[nodiscard]] __device__ __forceinline__ float query_offset_warp(
    const CodecContext& context, const float (&x)[ceil_div(Width, 32)], float* scratch, int lane) {
  constexpr int count = ceil_div(Width, 32);
  if constexpr (HasDenseBasis<Codec>) {
    const DenseTurn turn = Codec::dense_turn(context, Turn::to_basis);
    if (turn.subtracted == nullptr) return 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const int c = lane + 32 * k;
      if (c < Width) sum = __fmaf_rn(x[k], __ldg(turn.subtracted + c), sum);
    }
    return sum_of_lanes(sum);
  } else {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (lane + 32 * k < Width) scratch[lane + 32 * k] = x[k];
    }
    __syncwarp();
    const float offset = lane == 0 ? Codec::query_offset(context, scratch) : 0.0f;
    __syncwarp();
    return __shfl_sync(~0u, offset, 0);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
