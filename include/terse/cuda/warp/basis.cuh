/// The basis of a codec, applied by one warp to a vector that its lanes share.
#pragma once

#include "terse/config.hpp"
#include "terse/cuda/warp/operands.cuh"
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

/// Into the codec's basis (Forward) or out of it. `scratch [Width]` in shared memory is the warp's.
template <class Codec, int Width, bool Forward>
__device__ __forceinline__ void turn_warp(Side side, float (&x)[ceil_div(Width, 32)],
                                          float* scratch, int lane) {
  if constexpr (HasHadamard<Codec>) {
    hadamard_warp<Width, hadamard_size(Width, Codec::hadamard_limit)>(x, lane);
  } else if constexpr (HasSignedHadamard<Codec>) {
    if constexpr (Forward) turn_signs_warp(x, lane);
    hadamard_warp<Width, hadamard_size(Width, Codec::signed_hadamard_limit)>(x, lane);
    if constexpr (!Forward) turn_signs_warp(x, lane);
  } else if constexpr (HasBasis<Codec>) {
    constexpr int count = ceil_div(Width, 32);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (lane + 32 * k < Width) scratch[lane + 32 * k] = x[k];
    }
    __syncwarp();
    if (lane == 0) {
      if constexpr (Forward) {
        Codec::to_basis(CodecContext{side, Width}, scratch);
      } else {
        Codec::from_basis(CodecContext{side, Width}, scratch);
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

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
