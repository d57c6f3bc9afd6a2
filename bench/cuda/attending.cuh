/// Time of decode attention over a cache of the device, as a row of a benchmark.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "terse/cuda/attend.cuh"

#include "cuda/device_cache.cuh"
#include "cuda/run_benchmarks.hpp"
#include "cuda/timing.cuh"

namespace terse::bench {

using Dims = cuda::HeadDims<128>;

/// One query row of every sequence, in a graph of launches over all copies of a cache.
template <class Policy>
class Attending {
 public:
  Attending(const DeviceCache<Policy>& cache, const BatchShape& batch)
      : cache_(cache), batch_(batch) {
    const int parts = static_cast<int>(batch.lengths.size());
    std::vector<StepPart> host_parts;
    for (int i = 0; i < parts; ++i) host_parts.push_back({SequenceId{i, 1}, 1});
    parts_ = DeviceArray<StepPart>(host_parts);
    std::vector<F16> host_queries(
        static_cast<std::size_t>(parts * batch.query_heads * batch.head_dim));
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (F16& q : host_queries) q = to_f16(normal(random));
    queries_ = DeviceArray<F16>(host_queries);
    output_ = DeviceArray<F16>(host_queries.size());
    const auto bytes = cuda::attend_workspace_bytes(cache.view(0), in());
    must(bytes.status());
    workspace_ = DeviceArray<std::byte>(*bytes);
    must(cuda::clear_workspace({workspace_.data(), workspace_.size()}, nullptr));
    must(cudaDeviceSynchronize());
  }

  void launch(int i, cudaStream_t stream, const AttendParams& params = {},
              BytesRead* bytes_read = nullptr) const {
    const cuda::AttendOutputs out{
        MutableHeadRows::dense(output_.data(), Scalar::f16, batch_.query_heads, batch_.head_dim),
        nullptr, nullptr, bytes_read};
    must(cuda::attend<Dims>(cache_.view(i % cache_.copies()), in(), out,
                            {workspace_.data(), workspace_.size()}, params, stream));
  }

  /// Times launches in replayed graphs, and names the kernel.
  void run(benchmark::State& state, const AttendParams& params = {}) const {
    LaunchGraph graph(std::max(20, cache_.copies()),
                      [&](int i, cudaStream_t stream) { launch(i, stream, params); });
    for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
    for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
    using Ref = typename DeviceCache<Policy>::Ref;
    state.SetLabel(std::string(cuda::key_kernel_name<Ref, 128>()) + " x " +
                   cuda::value_kernel_name<Ref, 128>());
  }

 private:
  [[nodiscard]] cuda::AttendInputs in() const {
    const int parts = static_cast<int>(batch_.lengths.size());
    return {parts_.data(), parts, parts,
            HeadRows::dense(queries_.data(), Scalar::f16, batch_.query_heads, batch_.head_dim),
            true};
  }

  const DeviceCache<Policy>& cache_;
  BatchShape batch_;
  DeviceArray<StepPart> parts_;
  DeviceArray<F16> queries_, output_;
  DeviceArray<std::byte> workspace_;
};

[[nodiscard]] inline BatchShape uniform(int batch, int tokens, int query_heads, int kv_heads) {
  return {query_heads, kv_heads, 128, std::vector<int>(static_cast<std::size_t>(batch), tokens)};
}

}  // namespace terse::bench
