/// Device memory of tests, and attention on the device over a copy of a host cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

/// A tensor `[row, head, channel]` of any type on the device, with elements behind each vector that
/// belong to none. All begin as NaN.
class DeviceRows {
 public:
  DeviceRows(int rows, int heads, int channels, Scalar scalar, int gap)
      : rows_(rows),
        heads_(heads),
        channels_(channels),
        pitch_(channels + gap),
        scalar_(scalar),
        bytes_(static_cast<std::size_t>(rows) * static_cast<std::size_t>(heads * pitch_) *
               static_cast<std::size_t>(scalar_bytes(scalar))) {}

  /// `values [row, head, channel]`, rounded to the tensor's type.
  void set(const std::vector<float>& values) {
    std::vector<std::byte> host(bytes_.span().size(), std::byte{0xff});
    const MutableHeadRows to{host.data(), scalar_, row_stride(), pitch_};
    const float* from = values.data();
    for_each_vector([&](int row, int head) {
      to.store(row, head, channels_, from);
      from += channels_;
    });
    bytes_ = DeviceBytes::copy_of(host.data(), host.size());
  }
  [[nodiscard]] std::vector<float> values() const {
    const auto host = bytes_.to_host<std::byte>();
    const HeadRows from{host.data(), scalar_, row_stride(), pitch_};
    std::vector<float> values(static_cast<std::size_t>(rows_) *
                              static_cast<std::size_t>(heads_ * channels_));
    float* to = values.data();
    for_each_vector([&](int row, int head) {
      from.load(row, head, channels_, to);
      to += channels_;
    });
    return values;
  }
  /// Whether no byte between vectors has been written.
  [[nodiscard]] bool gaps_are_whole() const {
    const auto host = bytes_.to_host<std::byte>();
    const auto size = static_cast<std::ptrdiff_t>(scalar_bytes(scalar_));
    bool whole = true;
    auto vector = host.begin();
    for_each_vector([&](int, int) {
      whole = whole && std::all_of(vector + channels_ * size, vector + pitch_ * size,
                                   [](std::byte x) { return x == std::byte{0xff}; });
      vector += pitch_ * size;
    });
    return whole;
  }
  [[nodiscard]] MutableHeadRows view() const {
    return {bytes_.as<std::byte>(), scalar_, row_stride(), pitch_};
  }
  [[nodiscard]] HeadRows read_only() const {
    return {bytes_.as<std::byte>(), scalar_, row_stride(), pitch_};
  }

 private:
  [[nodiscard]] std::int64_t row_stride() const { return std::int64_t{heads_} * pitch_; }
  template <class Visit>
  void for_each_vector(Visit&& visit) const {
    for (int row = 0; row < rows_; ++row) {
      for (int head = 0; head < heads_; ++head) visit(row, head);
    }
  }

  int rows_, heads_, channels_, pitch_;
  Scalar scalar_;
  DeviceBytes bytes_;
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

/// Everything that attention on the device takes, over a copy of `host`'s buffers.
template <class Ref>
struct DeviceCall {
  std::size_t rows = 0, heads, channels;  ///< channels of a query
  int output_channels;
  DeviceBuffers device;
  Ref view;
  DeviceBytes key_up, value_up;
  DeviceBytes key_calibration, value_calibration;
  DeviceBytes parts, queries, output, lse, column_sums, sink_logits, bytes_read;
  cuda::AttendInputs in;
  MutableHeadRows output_rows;  ///< where attend writes: `output`
  AttendParams params;

  DeviceCall(const Ref& r, const Buffers& host, Span<const StepPart> of_parts,
             const std::vector<float>& of_queries, const AttendParams& of_params)
      : heads(static_cast<std::size_t>(r.shape.query_heads)),
        channels(static_cast<std::size_t>(r.shape.head_dim)),
        output_channels(of_params.latent_output ? r.shape.value_width : r.shape.head_dim),
        device(host),
        view(cuda::rebase(r, host, device.view())),
        parts(DeviceBytes::copy_of(of_parts.data(), of_parts.size())),
        queries(DeviceBytes::copy_of(of_queries.data(), of_queries.size())),
        params(of_params) {
    for (const StepPart& part : of_parts) rows += static_cast<std::size_t>(part.tokens);
    output = DeviceBytes(rows * heads * static_cast<std::size_t>(output_channels) * sizeof(float));
    if constexpr (Ref::policy::projects) {
      const auto copy = [&](const float* up, int rank) {
        return DeviceBytes::copy_of(up, static_cast<std::size_t>(r.shape.kv_heads) * channels *
                                            static_cast<std::size_t>(rank));
      };
      key_up = copy(r.factors.key_up, r.shape.key_width);
      value_up = copy(r.factors.value_up, r.shape.value_width);
      view.factors.key_up = key_up.template as<float>();
      view.factors.value_up = value_up.template as<float>();
    }
    if constexpr (uses_calibration<typename Ref::policy>) {
      const auto copy = [&](const float*& numbers, int width, DeviceBytes& to) {
        if (numbers == nullptr) return;
        to = DeviceBytes::copy_of(numbers,
                                  static_cast<std::size_t>(r.shape.unit.units) *
                                      static_cast<std::size_t>(CalibrationLayout{width}.floats()));
        numbers = to.as<float>();
      };
      copy(view.calibration.keys, r.shape.key_width, key_calibration);
      copy(view.calibration.values, r.shape.value_width, value_calibration);
    }
    lse = DeviceBytes(rows * heads * sizeof(float));
    column_sums =
        DeviceBytes(of_parts.size() * static_cast<std::size_t>(r.shape.unit.units) *
                    static_cast<std::size_t>(r.shape.entries) * block_tokens * sizeof(float));
    bytes_read = DeviceBytes(of_parts.size() * static_cast<std::size_t>(r.shape.unit.units) *
                             sizeof(BytesRead));
    if (params.sink_logits != nullptr) {
      sink_logits = DeviceBytes::copy_of(params.sink_logits, heads);
      params.sink_logits = sink_logits.as<float>();
    }
    in = {parts.as<StepPart>(), static_cast<int>(of_parts.size()), static_cast<int>(rows),
          HeadRows::dense(queries.as<float>(), Scalar::f32, static_cast<int>(heads),
                          static_cast<int>(channels))};
    output_rows = MutableHeadRows::dense(output.as<float>(), Scalar::f32, static_cast<int>(heads),
                                         output_channels);
  }
  /// Attention with a workspace of its own.
  template <class Dims>
  Status attend(const cuda::AttendLimits& limits, bool wants_sums = false) {
    const auto need = cuda::attend_workspace_bytes(view, in);
    if (!need.ok()) return need.status();
    const DeviceBytes workspace(*need);
    if (Status s = cuda::clear_workspace(workspace.span(), nullptr); !s.ok()) return s;
    cudaMemset(bytes_read.as<std::byte>(), 0, bytes_read.span().size());
    const cuda::AttendOutputs out{output_rows, lse.as<float>(),
                                  wants_sums ? column_sums.as<float>() : nullptr,
                                  bytes_read.as<BytesRead>()};
    if (Status s = cuda::attend<Dims>(view, in, out, workspace.span(), params, nullptr, limits);
        !s.ok()) {
      return s;
    }
    return cuda::to_status(cudaDeviceSynchronize(), "the kernel failed");
  }
};

/// run_attend on the device, over a copy of `host`'s buffers.
template <class Dims, class Ref>
Attended run_on_device(const Ref& r, const Buffers& host, Span<const StepPart> parts,
                       const std::vector<float>& queries, const AttendParams& params = {},
                       const cuda::AttendLimits& limits = {}) {
  DeviceCall<Ref> call(r, host, parts, queries, params);
  Attended result;
  result.status = call.template attend<Dims>(limits);
  if (!result.status.ok()) return result;
  result.output = call.output.template to_host<float>();
  result.lse_ln = call.lse.template to_host<float>();
  result.bytes_read = call.bytes_read.template to_host<BytesRead>();
  return result;
}

}  // namespace terse::tests
