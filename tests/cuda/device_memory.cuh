/// Device memory of tests, and attention on the device over a copy of a host cache.
#pragma once

#include <cstddef>
#include <cstring>
#include <cuda_runtime.h>
#include <utility>
#include <vector>

#include "terse/cuda/attend.cuh"

#include "support/cache_driver.hpp"

namespace terse::tests {

/// Whether a CUDA device is at hand; tests skip without one.
inline bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Device bytes, filled so that unwritten ones read as NaN in every format.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size = 0) : size_(size) {
    if (size == 0) return;
    if (cudaMalloc(&data_, size) != cudaSuccess) std::abort();
    if (cudaMemset(data_, 0xff, size) != cudaSuccess) std::abort();
  }
  DeviceBytes(DeviceBytes&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceBytes() { cudaFree(data_); }

  template <class T>
  static DeviceBytes copy_of(const T* data, std::size_t count) {
    DeviceBytes bytes(count * sizeof(T));
    if (cudaMemcpy(bytes.data_, data, count * sizeof(T), cudaMemcpyDefault) != cudaSuccess) {
      std::abort();
    }
    return bytes;
  }
  template <class T>
  [[nodiscard]] std::vector<T> to_host() const {
    std::vector<T> out(size_ / sizeof(T));
    if (size_ > 0 &&
        cudaMemcpy(out.data(), data_, out.size() * sizeof(T), cudaMemcpyDefault) != cudaSuccess) {
      std::abort();
    }
    return out;
  }
  [[nodiscard]] Span<std::byte> span() const { return {static_cast<std::byte*>(data_), size_}; }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

/// A device copy of a host cache's buffers.
struct DeviceBuffers {
  DeviceBytes pages, tails, state;
  explicit DeviceBuffers(const Buffers& host)
      : pages(DeviceBytes::copy_of(host.pages.data(), host.pages.size())),
        tails(DeviceBytes::copy_of(host.tails.data(), host.tails.size())),
        state(DeviceBytes::copy_of(host.state.data(), host.state.size())) {}
  [[nodiscard]] Buffers view() const { return {pages.span(), tails.span(), state.span()}; }
};

/// run_attend on the device, over a copy of `host`'s buffers.
template <class Dims, class Ref>
Attended run_on_device(const Ref& r, const Buffers& host, Span<const StepPart> parts,
                       const std::vector<float>& queries, AttendParams params = {},
                       const cuda::AttendLimits& limits = {}) {
  std::size_t rows = 0;
  for (const StepPart& part : parts) rows += static_cast<std::size_t>(part.tokens);
  const DeviceBuffers device(host);
  const Ref view = cuda::rebase(r, host, device.view());
  const auto heads = static_cast<std::size_t>(r.shape.query_heads);
  const auto channels = static_cast<std::size_t>(r.shape.head_dim);
  const DeviceBytes part_bytes = DeviceBytes::copy_of(parts.data(), parts.size());
  const DeviceBytes query_bytes = DeviceBytes::copy_of(queries.data(), queries.size());
  const DeviceBytes output(rows * heads * channels * sizeof(float));
  const DeviceBytes lse(rows * heads * sizeof(float));
  const DeviceBytes sink_copy = params.sink_logits == nullptr
                                    ? DeviceBytes()
                                    : DeviceBytes::copy_of(params.sink_logits, heads);
  if (params.sink_logits != nullptr) params.sink_logits = sink_copy.as<float>();
  const cuda::AttendInputs in{
      part_bytes.as<StepPart>(), static_cast<int>(parts.size()), static_cast<int>(rows),
      HeadRows::dense(query_bytes.as<float>(), Scalar::f32, r.shape.query_heads, r.shape.head_dim)};
  const cuda::AttendOutputs out{MutableHeadRows::dense(output.as<float>(), Scalar::f32,
                                                       r.shape.query_heads, r.shape.head_dim),
                                lse.as<float>()};
  Attended result;
  const auto need = cuda::attend_workspace_bytes(view, in);
  if (!need.ok()) {
    result.status = need.status();
    return result;
  }
  const DeviceBytes workspace(*need);
  result.status = cuda::clear_workspace(workspace.span(), nullptr);
  if (result.status.ok()) {
    result.status = cuda::attend<Dims>(view, in, out, workspace.span(), params, nullptr, limits);
  }
  if (result.status.ok()) {
    result.status = cuda::to_status(cudaDeviceSynchronize(), "the kernel failed");
  }
  if (!result.status.ok()) return result;
  result.output = output.to_host<float>();
  result.lse_ln = lse.to_host<float>();
  return result;
}

}  // namespace terse::tests
