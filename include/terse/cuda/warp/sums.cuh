/// Sums over the lanes of a warp.
#pragma once

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// The sum of the lanes' numbers, in all of them: neighbours first, as sum_of_products adds its
/// partial sums. By all lanes.
[[nodiscard]] __device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
