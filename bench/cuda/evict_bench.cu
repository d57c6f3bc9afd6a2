/// Eviction on the device: Google Benchmark with manual time. Column sums are timed inside a
/// replayed graph over cold pages; observe, evict and compact on the host, waiting for the device
/// included.
#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "cuda/appending.cuh"
#include "cuda/policies.hpp"
#include "cuda/run_benchmarks.hpp"
#include "cuda/timing.cuh"

namespace {

using namespace terse;
using namespace terse::bench;
using Dims = cuda::HeadDims<128>;
using PerHead = PagedLayout<HeadPaging::per_head>;

/// One row a sequence.
template <class Policy>
void column_rows(benchmark::State& state, int sequences, int tokens) {
  const DeviceCache<Policy> cache(
      {32, 8, 128, std::vector<int>(static_cast<std::size_t>(sequences), tokens)});
  std::vector<StepPart> host_parts;
  for (int i = 0; i < sequences; ++i) host_parts.push_back({SequenceId{i, 1}, 1});
  const DeviceArray<StepPart> parts(host_parts);
  const auto heads = static_cast<std::size_t>(sequences * 32);
  const DeviceArray<F16> queries(heads * 128);
  fill_random<<<64, 256>>>(reinterpret_cast<std::uint32_t*>(queries.data()), queries.size() / 2, 3);
  const DeviceArray<float> lse(std::vector<float>(heads, 10.0f));
  const ClassShape& shape = cache.shape();
  const DeviceArray<float> sums(static_cast<std::size_t>(sequences * shape.unit.units) *
                                static_cast<std::size_t>(shape.entries) * block_tokens);
  const cuda::AttendInputs in{parts.data(), sequences, sequences,
                              HeadRows::dense(queries.data(), Scalar::f16, 32, 128)};
  LaunchGraph graph(std::max(20, cache.copies()), [&](int i, cudaStream_t stream) {
    must(cuda::sum_attention_columns<Dims>(cache.view(i % cache.copies()), in, lse.data(),
                                           sums.data(), {}, stream));
  });
  for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
  for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
  const auto keys = static_cast<double>(Policy::key_codec::record(Side::key, 128).bytes);
  const double blocks = static_cast<double>(sequences) * shape.unit.units * tokens / block_tokens;
  report_bytes(state, blocks * (keys + block_tokens * sizeof(float)), "of_ceiling", read_ceiling());
}

/// 32 layers; sequences at their budget, 16 tokens over it, or 64 where they are compacted.
enum class Timed { observe, evict, compact };
template <class Policy>
void evict_rows(benchmark::State& state, int sequences, int budget, Timed timed) {
  constexpr int layers = 32, room = 512;  // for all iterations, where nothing is compacted
  const int fresh = timed == Timed::compact ? 64 : 16;
  PolicyConfig<PolicyOf<Policy>> policy;
  policy.eviction.heavy_tokens = policy.eviction.recent_tokens = budget / 2;
  Appending<Policy, PerHead> filled(sequences, budget, room, layers, policy);
  auto& cache = filled.cache();
  must(cache.abandon_step(nullptr));
  std::vector<StepPart> parts;
  for (const SequenceId id : filled.ids()) parts.push_back({id, 1});
  const DeviceArray<float> sums(parts.size() * cache.column_sum_floats(0));
  fill_random<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(sums.data()), sums.size(), 9);
  std::int64_t moved = 0;
  for (auto _ : state) {
    filled.begin(fresh);
    for (int layer = 0; layer < layers; ++layer) filled.append(layer, nullptr);
    must(cache.commit_step(nullptr));
    must(cudaDeviceSynchronize());
    const auto start = std::chrono::steady_clock::now();
    auto observed = start;
    for (int layer = 0; layer < layers; ++layer) {
      must(cache.observe(layer, parts, {sums.data(), sums.size()}, nullptr));
    }
    must(cudaDeviceSynchronize());
    observed = std::chrono::steady_clock::now();
    must(cache.evict(filled.ids(), 0, nullptr).status());
    const std::chrono::duration<double> observing = observed - start;
    const auto evicted = std::chrono::steady_clock::now();
    const std::chrono::duration<double> evicting = evicted - observed;
    double seconds = timed == Timed::observe ? observing.count() : evicting.count();
    if (timed == Timed::compact) {
      for (const SequenceId id : filled.ids()) {
        const auto done = cache.compact(id, nullptr, true);
        must(done.status());
        moved += done->tokens_moved;
      }
      must(cudaDeviceSynchronize());
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - evicted).count();
    }
    state.SetIterationTime(seconds);
  }
  if (timed != Timed::compact) return;
  // Read and written in an iteration.
  const ClassShape& shape = cache.memory_plan().classes[0].shape;
  report_bytes(state,
               2.0 * static_cast<double>(moved) / static_cast<double>(state.iterations()) *
                   static_cast<double>(shape.unit_bytes) / block_tokens,
               "of_copy", copy_rate());
}

template <class Policy>
void add_columns(const std::string& policy) {
  using State = benchmark::State;
  add_row(policy + "/columns_64x512", [](State& s) { column_rows<Policy>(s, 64, 512); });
  add_row(policy + "/columns_1x32k", [](State& s) { column_rows<Policy>(s, 1, 32768); });
  add_row(policy + "/columns_8x32k", [](State& s) { column_rows<Policy>(s, 8, 32768); });
}

template <class Policy>
void add_evictions(const std::string& policy) {
  for (const auto& [name, timed] : {std::pair{"observe", Timed::observe},
                                    {"evict", Timed::evict},
                                    {"compact", Timed::compact}}) {
    for (const auto& [sequences, budget] : {std::pair{1, 512}, {1, 8192}, {64, 512}}) {
      add_row(policy + "/" + name + "_" + std::to_string(sequences) + "x" + std::to_string(budget),
              [t = timed, n = sequences, b = budget](benchmark::State& s) {
                evict_rows<Policy>(s, n, b, t);
              });
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  add_columns<Compose<Identity>>("f16");
  add_columns<Compose<Int8>>("int8");
  add_columns<Compose<Int4Rotated>>("int4_rotated");
  add_columns<Compose<Kivi2Short>>("kivi2_g32");
  add_evictions<Compose<Int8, H2O>>("int8_h2o");
  add_evictions<Compose<Kivi2Short, H2O>>("kivi2_g32_h2o");
  return run_benchmarks(argc, argv, "read_ceiling_GB/s", read_ceiling);
}
