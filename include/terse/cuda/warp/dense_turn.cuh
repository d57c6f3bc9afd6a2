/// Dense turns of vectors in shared memory, by the threads of a block: the same bits as the host's,
/// whose order of sums is kept.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/warp/sums.cuh"
#include "terse/policy/calibration.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Channels of the widest vectors that are turned densely.
inline constexpr int most_dense_width = 256;

/// The same pointer, which the compiler then knows to be one into shared memory.
template <class T>
[[nodiscard]] __device__ __forceinline__ T* in_shared(T* pointer) {
  return static_cast<T*>(__cvta_shared_to_generic(__cvta_generic_to_shared(pointer)));
}

/// sums[n][k] = the sum over rows r of `matrix [width, width]` of x[n][r] * matrix[r][column[k]].
/// `Aligned`: vectors begin at multiples of 16 bytes, and their width is one of four.
template <bool Aligned, int Vectors, int Columns>
__device__ __forceinline__ void add_matrix_rows(const float* matrix, int width,
                                                const float* const (&x)[Vectors],
                                                const int (&column)[Columns],
                                                float (&sums)[Vectors][Columns]) {
#pragma unroll
  for (int n = 0; n < Vectors; ++n) {
#pragma unroll
    for (int k = 0; k < Columns; ++k) sums[n][k] = 0.0f;
  }
  constexpr int at_once = Aligned ? 4 : 1;
  constexpr int rows_in_flight = Columns == 1 && Vectors == 1 ? 64
                                 : Columns == 1               ? 32
                                 : Columns <= 4               ? 16 / Columns
                                                              : 2;
  constexpr int unrolled = rows_in_flight > at_once ? rows_in_flight / at_once : 1;
#pragma unroll unrolled
  for (int begin = 0; begin < width; begin += at_once) {
    float entries[at_once][Columns];
#pragma unroll
    for (int r = 0; r < at_once; ++r) {
#pragma unroll
      for (int k = 0; k < Columns; ++k) {
        entries[r][k] = __ldg(matrix + (begin + r) * width + column[k]);
      }
    }
#pragma unroll
    for (int n = 0; n < Vectors; ++n) {
      float factors[at_once];
      if constexpr (Aligned) {
        *reinterpret_cast<float4*>(factors) = *reinterpret_cast<const float4*>(x[n] + begin);
      } else {
        factors[0] = x[n][begin];
      }
#pragma unroll
      for (int r = 0; r < at_once; ++r) {
#pragma unroll
        for (int k = 0; k < Columns; ++k) {
          sums[n][k] = __fmaf_rn(factors[r], entries[r][k], sums[n][k]);
        }
      }
    }
  }
}

/// One column of up to `Most` vectors `x [vector, stride]`.
template <bool Aligned, int Most>
__device__ __forceinline__ void turn_column(const float* matrix, int width, int column,
                                            const float* x, int stride, int vectors,
                                            float (&sums)[Most]) {
  const float* from[Most];
#pragma unroll
  for (int n = 0; n < Most; ++n) from[n] = x + min(n, vectors - 1) * stride;
  const int columns[1] = {column};
  float own[Most][1];
  add_matrix_rows<Aligned>(matrix, width, from, columns, own);
#pragma unroll
  for (int n = 0; n < Most; ++n) sums[n] = own[n][0];
}

/// One column of up to `Most` vectors `x [vector, Width]` to `y` alike.
template <int Most, int Width>
__device__ __forceinline__ void turn_column_apart(const float* matrix, int column, const float* x,
                                                  int vectors, float* y) {
  float sums[Most];
  turn_column<true>(matrix, Width, column, x, Width, vectors, sums);
#pragma unroll
  for (int n = 0; n < Most; ++n) {
    if (n < vectors) y[n * Width + column] = sums[n];
  }
}

/// Vectors `x [vector, Width]` to `y`, both in shared memory, aligned to 16 bytes, and apart; a
/// thread a column of up to eight vectors. By all threads, which have met before and meet at the
/// end.
template <int Width>
static __device__ __noinline__ void turn_apart(const float* matrix, const float* from, int vectors,
                                               float* to) {
  static_assert(Width % 4 == 0);
  const float* x = in_shared(from);
  float* y = in_shared(to);
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  // Threads behind the last column begin with other vectors.
  const int teams = threads / Width > 1 ? threads / Width : 1;
  const int team = teams > 1 ? thread / Width : 0, each = clamp(ceil_div(vectors, teams), 1, 8);
  for (int c = thread - team * Width; c < Width && team < teams; c += threads) {
    for (int first = team * each; first < vectors; first += teams * each) {
      const int own = min(each, vectors - first);
      if (own <= 4) {
        turn_column_apart<4, Width>(matrix, c, x + first * Width, own, y + first * Width);
      } else {
        turn_column_apart<8, Width>(matrix, c, x + first * Width, own, y + first * Width);
      }
    }
  }
  __syncthreads();
}

/// Up to `Most` vectors `x [vector, stride]` of up to as many channels as there are threads, in
/// place. By all threads, which have met before and do not meet after.
template <int Most>
__device__ __forceinline__ void turn_together(const float* matrix, int width, float* x, int stride,
                                              int vectors) {
  const auto thread = static_cast<int>(threadIdx.x);
  float sums[Most] = {};
  if (thread < width) turn_column<false>(matrix, width, thread, x, stride, vectors, sums);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < Most; ++n) {
    if (thread < width && n < vectors) x[n * stride + thread] = sums[n];
  }
}

/// Vectors `x [vector, stride]` in place, eight a warp, or four of wide ones, a lane `Columns`
/// columns of them: the matrix is read once for all. By all threads, which have met before and do
/// not meet after.
template <int Columns>
__device__ __forceinline__ void turn_by_warps(const float* matrix, int width, float* x, int stride,
                                              int vectors) {
  constexpr int each = Columns <= 4 ? 8 : 4;
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  int column[Columns];
#pragma unroll
  for (int k = 0; k < Columns; ++k) column[k] = min(lane + 32 * k, width - 1);
  for (int first = static_cast<int>(threadIdx.x) / 32 * each; first < vectors;
       first += warps * each) {
    const float* from[each];
#pragma unroll
    for (int n = 0; n < each; ++n) from[n] = x + min(first + n, vectors - 1) * stride;
    float sums[each][Columns];
    add_matrix_rows<false>(matrix, width, from, column, sums);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < each; ++n) {
#pragma unroll
      for (int k = 0; k < Columns; ++k) {
        if (first + n < vectors && lane + 32 * k < width) {
          x[(first + n) * stride + lane + 32 * k] = sums[n][k];
        }
      }
    }
    __syncwarp();
  }
}

/// Vectors `x [vector, stride]` in place, each number the product with a row of the matrix, plus
/// that of `added`; a warp a vector. By all threads, which have met before and do not meet after.
static __device__ __forceinline__ void turn_by_products(const DenseTurn& turn, int width, float* x,
                                                        int stride, int vectors) {
  constexpr int most_channels = most_dense_width / 32;  // of a lane
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int v = static_cast<int>(threadIdx.x) / 32; v < vectors; v += warps) {
    float own[most_channels];
#pragma unroll
    for (int k = 0; k < most_channels; ++k) {
      own[k] = lane + 32 * k < width ? x[v * stride + lane + 32 * k] : 0.0f;
    }
    __syncwarp();
#pragma unroll 4
    for (int c = 0; c < width; ++c) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < most_channels; ++k) {
        if (lane + 32 * k >= width) break;
        sum = __fmaf_rn(own[k], __ldg(turn.matrix + c * width + lane + 32 * k), sum);
      }
      sum = sum_of_lanes(sum);
      if (lane == 0) x[v * stride + c] = turn.added == nullptr ? sum : turn.added[c] + sum;
    }
  }
}

/// Vectors of up to 256 channels `x [vector, stride]` in place. By all threads, which have met
/// before and meet at the end.
static __device__ __noinline__ void turn_densely(const DenseTurn turn, int width, float* vector,
                                                 int stride, int vectors) {
  float* x = in_shared(vector);
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (turn.subtracted != nullptr) {
    for (int v = thread / 32; v < vectors; v += threads / 32) {
      for (int c = thread % 32; c < width; c += 32) x[v * stride + c] -= turn.subtracted[c];
    }
    __syncthreads();
  }
  if (turn.multiplies_rows) {
    turn_by_products(turn, width, x, stride, vectors);
  } else if (vectors == 1 && width <= threads) {
    turn_together<1>(turn.matrix, width, x, stride, vectors);
  } else if (vectors <= 8 && width <= threads) {
    turn_together<8>(turn.matrix, width, x, stride, vectors);
  } else if (width <= 64) {
    turn_by_warps<2>(turn.matrix, width, x, stride, vectors);
  } else if (width <= 128) {
    turn_by_warps<4>(turn.matrix, width, x, stride, vectors);
  } else {
    turn_by_warps<8>(turn.matrix, width, x, stride, vectors);
  }
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
