/// Copies between the host and the device, one after another in a stream.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>

#include "terse/config.hpp"
#include "terse/core/status.hpp"
#include "terse/cuda/device_ref.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Queues copies until one fails.
class CopyQueue {
 public:
  /// `text`: what is said when a copy fails.
  CopyQueue(cudaStream_t stream, const char* text) noexcept : stream_(stream), text_(text) {}

  void copy(void* to, const void* from, std::size_t bytes) noexcept {
    if (bytes == 0 || !status_.ok()) return;
    status_ = to_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), text_);
  }
  /// Waits, so that no copy is still under way when a call has failed; gives the first error.
  [[nodiscard]] Status finish() const noexcept {
    const Status end = to_status(cudaStreamSynchronize(stream_), text_);
    return status_.ok() ? end : status_;
  }

 private:
  cudaStream_t stream_;
  const char* text_;
  Status status_{};
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
