/// Hints that memory will be read.
#pragma once

#include <cstddef>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int cache_line_bytes = 128;

/// Brings global memory into the second-level cache. By all threads, which do not meet.
__device__ __forceinline__ void prefetch_together(const void* from, int bytes) {
  const auto* begin = static_cast<const std::byte*>(from);
  for (int i = static_cast<int>(threadIdx.x) * cache_line_bytes; i < bytes;
       i += static_cast<int>(blockDim.x) * cache_line_bytes) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(begin + i));
  }
}

/// Brings lines from the end of global memory on into the first-level cache, a lane a line. By
/// the `lanes` threads of which the calling one is the `lane`-th.
__device__ __forceinline__ void touch_backwards(const void* from, int bytes, int lane, int lanes) {
  const auto* begin = static_cast<const std::byte*>(from);
  for (int i = bytes - (lane + 1) * cache_line_bytes; i >= 0; i -= lanes * cache_line_bytes) {
    asm volatile("{.reg .u32 unused; ld.global.ca.u32 unused, [%0];}" ::"l"(begin + i));
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
