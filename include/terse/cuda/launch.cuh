/// Launching of kernels, with what went wrong as a Status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/config.hpp"
#include "terse/cuda/device_ref.cuh"
#include "terse/cuda/tuning.cuh"

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

/// Lets launches of a kernel have as much shared memory as the device gives. The limit is the
/// kernel's, not the launch's, so it is the same for all caches and threads. `too_much`: what is
/// said where `need` bytes are more, `no_code`: where the program has no code for the device.
template <class... Params>
[[nodiscard]] Status allow_shared_bytes(void (*kernel)(Params...), std::size_t need,
                                        const char* too_much, const char* no_code) noexcept {
  int device = 0, most = 0;
  constexpr const char* no_device = "terse::cuda: no CUDA device";
  if (Status s = to_status(cudaGetDevice(&device), no_device); !s.ok()) return s;
  if (Status s =
          to_status(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                    no_device);
      !s.ok()) {
    return s;
  }
  if (need > static_cast<std::size_t>(most)) {
    return error(StatusCode::unsupported, too_much, static_cast<std::int64_t>(need));
  }
  return to_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
                   no_code);
}

/// The hardware for which `kernel`'s code was loaded.
template <class Kernel>
[[nodiscard]] Status find_hardware(Kernel* kernel, Hardware* hardware) noexcept {
  cudaFuncAttributes attributes{};
  const Status s = to_status(cudaFuncGetAttributes(&attributes, kernel),
                             "terse::cuda: the program holds no code for this device");
  *hardware = attributes.ptxVersion >= 90 && attributes.ptxVersion < 120 ? Hardware::hopper
                                                                         : Hardware::portable;
  return s;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
