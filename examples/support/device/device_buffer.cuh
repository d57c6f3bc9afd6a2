#pragma once

#include <cstddef>
#include <cuda_runtime.h>
#include <utility>

#include "terse/core/span.hpp"
#include "terse/cuda/device_ref.cuh"

#include "evaluation/check.hpp"

namespace terse::examples {

inline void check(cudaError_t code) { check(cuda::to_status(code, cudaGetErrorString(code))); }

/// Device memory that only grows; its content is lost when it does.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBuffer() { cudaFree(data_); }

  /// Whether there was not enough.
  bool resize(std::size_t bytes) {
    if (bytes <= size_) return false;
    check(cudaFree(std::exchange(data_, nullptr)));
    size_ = 0;
    check(cudaMalloc(&data_, bytes));
    size_ = bytes;
    return true;
  }
  /// Room for `count` elements of type T.
  template <class T>
  [[nodiscard]] T* make(std::size_t count) {
    resize(count * sizeof(T));
    return static_cast<T*>(data_);
  }
  [[nodiscard]] Span<std::byte> span() const { return {static_cast<std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace terse::examples
