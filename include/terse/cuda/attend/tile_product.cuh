/// Products of small matrices by the warps of a thread block, on tensor cores.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// `c [m, n] = keep(row) * c + a [m, k] b [k, n]` with tf32 operands and fp32 sums, where
/// `keep(row) == 0` reads nothing of c. `a(row, i)` and `b(i, column)` give tf32 numbers
/// (to_tf32), also for rows, columns and terms beyond m, n and k up to the next multiples of 16,
/// `8 * Columns` and 8. c has room for such columns. A warp takes 16 rows of `8 * Columns` columns
/// at a time. By all threads of the block, which do not meet at the end.
template <int Columns, class A, class B, class Keep>
__device__ __forceinline__ void multiply_tiles(int m, int n, int k, A&& a, B&& b, float* c,
                                               int c_stride, Keep&& keep) {
  const Lane lane = this_lane();
  const int across = ceil_div(n, 8 * Columns), tasks = ceil_div(m, 16) * across;
  const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll 1
  for (int task = static_cast<int>(threadIdx.x) / 32; task < tasks; task += warps) {
    const int row0 = task / across * 16 + lane.g, column0 = task % across * 8 * Columns;
    float sums[Columns][4];
    const auto for_each_pair = [&](auto&& f) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + 8 * half;
        if (row >= m) continue;
        const float factor = keep(row);
#pragma unroll
        for (int n8 = 0; n8 < Columns; ++n8) {
          const int column = column0 + 8 * n8 + 2 * lane.t;
          f(*reinterpret_cast<float2*>(c + row * c_stride + column), factor, sums[n8][2 * half],
            sums[n8][2 * half + 1]);
        }
      }
    };
#pragma unroll
    for (int n8 = 0; n8 < Columns; ++n8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n8][i] = 0.0f;
    }
    for_each_pair([](const float2& place, float factor, float& x, float& y) {
      if (factor == 0.0f) return;
      x = place.x * factor;
      y = place.y * factor;
    });
#pragma unroll 4
    for (int begin = 0; begin < k; begin += 8) {  // the lanes of a warp stay together
      const int i = begin + lane.t;
      const std::uint32_t rows[4] = {a(row0, i), a(row0 + 8, i), a(row0, i + 4),
                                     a(row0 + 8, i + 4)};
#pragma unroll
      for (int n8 = 0; n8 < Columns; ++n8) {
        const int column = column0 + 8 * n8 + lane.g;
        multiply_add_tf32(sums[n8], rows, b(i, column), b(i + 4, column));
      }
    }
    for_each_pair([](float2& place, float, float x, float y) { place = {x, y}; });
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
