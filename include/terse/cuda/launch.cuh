/// Launching a kernel, with what went wrong as a Status.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>

#include "terse/config.hpp"
#include "terse/cuda/device_ref.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Where and how large: `grid` thread blocks of `threads` threads with `shared_bytes` bytes.
struct LaunchShape {
  dim3 grid;
  int threads;
  std::size_t shared_bytes = 0;
  /// It may begin before the kernel in front of it has ended (programmatic dependent launch).
  bool overlaps = false;
};

/// `text`: what is said if it fails.
template <class... Params, class... Args>
[[nodiscard]] Status launch_kernel(const LaunchShape& shape, cudaStream_t stream, const char* text,
                                   void (*kernel)(Params...), const Args&... args) noexcept {
  cudaLaunchConfig_t launch{};
  launch.gridDim = shape.grid;
  launch.blockDim = dim3(static_cast<unsigned>(shape.threads));
  launch.dynamicSmemBytes = shape.shared_bytes;
  launch.stream = stream;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  launch.attrs = &overlap;
  launch.numAttrs = shape.overlaps ? 1 : 0;
  return to_status(cudaLaunchKernelEx(&launch, kernel, args...), text);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
