/// The basis of a codec, applied by a thread block to the tokens of a tile.
#pragma once

#include "terse/config.hpp"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/warp/basis.cuh"
#include "terse/cuda/warp/dense_turn.cuh"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// hadamard_warp of each token of the tile, a warp a token. By all threads.
template <int Width>
__device__ __forceinline__ void hadamard_rows(const TokenTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int t = static_cast<int>(threadIdx.x) / 32; t < tile.count; t += warps) {
    float* row = tile.row(tile.first + t) + lane;
    float x[Width / 32];
#pragma unroll
    for (int k = 0; k < Width / 32; ++k) x[k] = row[32 * k];
    hadamard_warp<Width, Width>(x, lane);
#pragma unroll
    for (int k = 0; k < Width / 32; ++k) row[32 * k] = x[k];
  }
}

/// As terse::hadamard, the same sums in the same order. By all threads, which meet at the end.
static __device__ void hadamard_tile(const TokenTile tile, int width, int size) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  if (width == 64 && size == 64) {
    hadamard_rows<64>(tile);
  } else if (width == 128 && size == 128) {
    hadamard_rows<128>(tile);
  } else {
    const float norm = hadamard_norm(size);
    for (int t = static_cast<int>(threadIdx.x) / 32; t < tile.count; t += warps) {
      float* row = tile.row(tile.first + t);
      for (int half = 1; half < size; half *= 2) {
        for (int pair = lane; pair < width / 2; pair += 32) {
          float* x = row + 2 * pair - (pair & (half - 1));
          const float a = x[0], b = x[half];
          x[0] = a + b;
          x[half] = a - b;
        }
        __syncwarp();
      }
      for (int c = lane; c < width; c += 32) row[c] *= norm;
    }
  }
  __syncthreads();
}

/// As terse::turn_signs. By all threads, which meet at the end.
static __device__ void turn_signs_of_tile(const TokenTile tile, int width) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < tile.count * width; i += threads) {
    const int c = i % width;
    float* x = tile.row(tile.first + i / width) + c;
    if (turns_sign(c)) *x = -*x;
  }
  __syncthreads();
}

/// Turns the tile's tokens into the basis of codec C (Forward) or out of it. By all threads, which
/// meet at the end where C has a basis.
template <Codec C, bool Forward = true>
__device__ void turn_tile(const CodecContext& context, const TokenTile& tile) {
  if constexpr (HasDenseBasis<C>) {
    static_assert(C::max_width <= most_dense_width);
    const DenseTurn turn = C::dense_turn(context, Forward ? Turn::to_basis : Turn::from_basis);
    if (turn.matrix != nullptr) {
      return turn_densely(turn, context.width, tile.row(tile.first), tile.stride, tile.count);
    }
  }
  using Basis = PlainBasis<C>;
  if constexpr (HasHadamard<Basis>) {  // its own inverse
    hadamard_tile(tile, context.width, hadamard_size(context.width, Basis::hadamard_limit));
  } else if constexpr (HasSignedHadamard<Basis>) {
    if constexpr (Forward) turn_signs_of_tile(tile, context.width);
    hadamard_tile(tile, context.width, hadamard_size(context.width, Basis::signed_hadamard_limit));
    if constexpr (!Forward) turn_signs_of_tile(tile, context.width);
  } else if constexpr (HasBasis<C>) {
    for (int t = static_cast<int>(threadIdx.x); t < tile.count; t += static_cast<int>(blockDim.x)) {
      if constexpr (Forward) {
        C::to_basis(context, tile.row(tile.first + t));
      } else {
        C::from_basis(context, tile.row(tile.first + t));
      }
    }
    __syncthreads();
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
