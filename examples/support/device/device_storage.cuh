#pragma once

#include <cstddef>
#include <cuda_runtime.h>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "terse/terse.cuh"

#include "device/device_buffer.cuh"
#include "device/head_dims.cuh"
#include "evaluation/aligned_memory.hpp"
#include "evaluation/check.hpp"
#include "evaluation/device.hpp"

namespace terse::examples {

/// As HostStorage, in a terse::cuda::KVCache. Vectors are the host's: they are copied.
template <Layout L, class Policy>
class DeviceStorage {
 public:
  using Cache = cuda::KVCache<L, Policy>;

  /// As HostStorage is made; attention takes no threads of the host.
  explicit DeviceStorage(ThreadPool*) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  DeviceStorage(const DeviceStorage&) = delete;
  DeviceStorage& operator=(const DeviceStorage&) = delete;
  ~DeviceStorage() { cudaStreamDestroy(stream_); }

  void start(const CacheConfig& config, typename Cache::Configs policies) {
    const auto factors = upload_factors(config, std::get<0>(policies));
    std::get<0>(policies).factors = {factors.data(), factors.size()};
    const auto calibration = upload_calibration(config, std::get<0>(policies).calibration);
    std::get<0>(policies).calibration.slots = {calibration.data(), calibration.size()};
    const auto plan = Cache::plan(config, policies);
    check(plan.status());
    pages_.resize(plan->pages_bytes);
    tails_.resize(plan->tails_bytes);
    state_.resize(plan->state_bytes);
    mirror_.resize(plan->mirror_bytes);
    auto cache = Cache::create(
        config, {pages_.span(), tails_.span(), state_.span(), mirror_.span()}, stream_, policies);
    check(cache.status());
    cache_.emplace(std::move(*cache));
    const auto sequence = cache_->create_sequence(stream_);
    check(sequence.status());
    part_.sequence = *sequence;
    const std::size_t counts = static_cast<std::size_t>(shape().unit.units) * sizeof(BytesRead);
    if (bytes_read_.resize(counts))
      check(cudaMemsetAsync(bytes_read_.span().data(), 0, counts, stream_));
  }

  /// How deep planes are read, from now on.
  void set_planes(const PlaneReading& reading) { params_.planes = reading; }

  void begin_step(int tokens) {
    part_.tokens = tokens;
    observed_.clear();
    check(cache_->begin_step({&part_, 1}, stream_));
    upload(parts_, &part_, 1);
  }
  void append(int layer, const float* keys, const float* values) {
    const ClassShape& s = shape();
    const auto rows = [&](DeviceBuffer& buffer, const float* x, int heads, int width) {
      return HeadRows::dense(upload(buffer, x, part_.tokens * heads * width), Scalar::f32, heads,
                             width);
    };
    check(cache_->append(
        layer,
        {.keys = rows(keys_, keys, s.unit.units * s.unit.key_streams, s.key_width),
         .values = rows(values_, values, s.unit.units * s.unit.value_streams, s.value_width)},
        stream_));
  }
  void attend(int layer, const float* queries, float* output) {
    const ClassShape& s = shape();
    const auto ref = cache_->layer(layer);
    const int vectors = part_.tokens * s.query_heads;
    const cuda::AttendInputs in{parts_.make<StepPart>(1), 1, part_.tokens,
                                HeadRows::dense(upload(queries_, queries, vectors * s.head_dim),
                                                Scalar::f32, s.query_heads, s.head_dim)};
    const auto bytes = cuda::attend_workspace_bytes(ref, in);
    check(bytes.status());
    if (workspace_.resize(*bytes)) check(cuda::clear_workspace(workspace_.span(), stream_));
    const auto floats = static_cast<std::size_t>(vectors * s.head_dim);
    auto* result = output_.make<float>(floats);
    cuda::AttendOutputs out{MutableHeadRows::dense(result, Scalar::f32, s.query_heads, s.head_dim),
                            lse_.make<float>(static_cast<std::size_t>(vectors)), nullptr,
                            reinterpret_cast<BytesRead*>(bytes_read_.span().data())};
    if constexpr (observes) {
      sums_.resize(static_cast<std::size_t>(cache_->config().num_layers));
      out.column_sums = sums_[static_cast<std::size_t>(layer)].template make<float>(
          cache_->column_sum_floats(layer));
      observed_.push_back(layer);
    }
    check(cuda::attend<DeviceHeadDims>(ref, in, out, workspace_.span(), params_, stream_));
    check(cudaMemcpyAsync(output, result, floats * sizeof(float), cudaMemcpyDefault, stream_));
    check(cudaStreamSynchronize(stream_));
  }
  void commit_step() {
    check(cache_->commit_step(stream_));
    for (const int layer : observed_) {
      const Span<std::byte> sums = sums_[static_cast<std::size_t>(layer)].span();
      check(cache_->observe(
          layer, {&part_, 1},
          {reinterpret_cast<const float*>(sums.data()), cache_->column_sum_floats(layer)},
          stream_));
    }
    // What only the device has seen, such as a NaN among the keys.
    check(cache_->recover(part_.sequence, stream_));
  }
  void evict(int incoming_tokens) {
    check(cache_->evict(part_.sequence, incoming_tokens, stream_).status());
  }
  void compact() { check(cache_->compact(part_.sequence, stream_).status()); }

  /// Of all calls of attend so far: SessionMemory::share_read.
  [[nodiscard]] double share_read() const {
    std::vector<BytesRead> units(static_cast<std::size_t>(shape().unit.units));
    check(cudaMemcpyAsync(units.data(), bytes_read_.span().data(), units.size() * sizeof(BytesRead),
                          cudaMemcpyDefault, stream_));
    check(cudaStreamSynchronize(stream_));
    BytesRead sum;
    for (const BytesRead& unit : units) sum += unit;
    return sum.share();
  }
  [[nodiscard]] MemoryUsage memory_usage() const { return cache_->memory_usage(); }
  [[nodiscard]] const ClassShape& shape() const { return cache_->memory_plan().classes[0].shape; }

 private:
  static constexpr bool observes = PolicyOf<Policy>::signal == Signal::column_sum;

  /// A projector's factors as they are, in device memory. `[slot]`
  std::vector<ProjectionFactors> upload_factors(const CacheConfig& config,
                                                const PolicyConfig<PolicyOf<Policy>>& policy) {
    std::vector<ProjectionFactors> result;
    factors_.clear();
    for (const ProjectionFactors& f : policy.factors) {
      const auto upload_up = [&](const float* up, int rank) {
        return upload(factors_.emplace_back(), up, config.num_kv_heads * config.head_dim * rank);
      };
      result.push_back({f.key_rank, f.value_rank, upload_up(f.key_up, f.key_rank),
                        upload_up(f.value_up, f.value_rank)});
    }
    return result;
  }

  /// Calibrations as they are, in device memory. `[slot]`
  std::vector<SlotCalibration> upload_calibration(const CacheConfig& config,
                                                  const CalibrationView& calibration) {
    std::vector<SlotCalibration> result;
    calibrations_.clear();
    const auto floats =
        static_cast<int>(config.num_kv_heads * CalibrationLayout{config.head_dim}.floats());
    for (const SlotCalibration& slot : calibration.slots) {
      const auto upload_side = [&](const float* numbers) {
        return numbers == nullptr ? nullptr : upload(calibrations_.emplace_back(), numbers, floats);
      };
      const float* keys = upload_side(slot.keys);
      result.push_back({keys, upload_side(slot.values)});
    }
    return result;
  }

  template <class T>
  T* upload(DeviceBuffer& buffer, const T* from, int count) {
    const auto elements = static_cast<std::size_t>(count);
    T* to = buffer.make<T>(elements);
    check(cudaMemcpyAsync(to, from, elements * sizeof(T), cudaMemcpyDefault, stream_));
    return to;
  }

  cudaStream_t stream_ = nullptr;
  DeviceBuffer pages_, tails_, state_, workspace_;
  AlignedMemory mirror_;
  std::vector<DeviceBuffer> factors_, calibrations_;
  DeviceBuffer parts_, keys_, values_, queries_, output_, lse_;
  DeviceBuffer bytes_read_;         ///< `[unit]`, of all calls so far
  std::vector<DeviceBuffer> sums_;  ///< `[layer]`, of the step in progress
  std::vector<int> observed_;       ///< layers that have some
  std::optional<Cache> cache_;
  StepPart part_{};
  AttendParams params_{};
};

template <Layout L, class Policy>
std::unique_ptr<Session> make_device_session(const SessionConfig& config,
                                             const SessionPolicy<Policy>& row) {
  return std::make_unique<CacheSession<L, Policy, DeviceStorage>>(config, row);
}

}  // namespace terse::examples
