/// Appending on the device: Google Benchmark with manual time, one row per policy and step. Time is
/// that of one layer's launch inside a replayed graph of many layers, or, in rows of bookkeeping,
/// what a step costs on the host, waiting for the device included.
#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "terse/cuda/kv_cache.cuh"

#include "cuda/device_cache.cuh"
#include "cuda/policies.hpp"
#include "cuda/run_benchmarks.hpp"
#include "cuda/timing.cuh"

namespace {

using namespace terse;
using namespace terse::bench;

constexpr int kv_heads = 8, head_dim = 128;

struct alignas(128) Aligned {
  std::byte bytes[128];
};

/// A cache whose sequences hold `length` tokens, inside a step of `tokens` more.
template <class Policy>
class Appending {
 public:
  using Cache = cuda::KVCache<PagedLayout<>, Policy>;

  Appending(int sequences, int length, int tokens, int layers)
      : layers_(layers),
        rows_(sequences * tokens),
        config_{.num_layers = layers,
                .num_query_heads = 4 * kv_heads,
                .num_kv_heads = kv_heads,
                .head_dim = head_dim,
                .max_sequences = sequences,
                .max_tokens = length + tokens,
                .max_step_tokens = std::max(length, tokens)},
        plan_(*Cache::plan(config_)),
        pages_(plan_.pages_bytes),
        tails_(std::max(plan_.tails_bytes, std::size_t{1})),
        state_(plan_.state_bytes),
        mirror_(plan_.mirror_bytes / sizeof(Aligned)),
        inputs_(static_cast<std::size_t>(layers) * row_halves() *
                static_cast<std::size_t>(std::max(rows_, sequences * length)) * 2),
        cache_(std::move(*Cache::create(config_,
                                        {bytes(pages_),
                                         {tails_.data(), plan_.tails_bytes},
                                         bytes(state_),
                                         {mirror_[0].bytes, plan_.mirror_bytes}},
                                        nullptr))) {
    fill_random<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(inputs_.data()), inputs_.size() / 2,
                               5);
    for (int i = 0; i < sequences; ++i) ids_.push_back(*cache_.create_sequence(nullptr));
    if (length > 0) {
      begin(length);
      for (int layer = 0; layer < layers; ++layer) append(layer, nullptr);
      must(cache_.commit_step(nullptr));
    }
    begin(tokens);
    must(cudaDeviceSynchronize());
  }

  void begin(int tokens) {
    std::vector<StepPart> parts;
    for (const SequenceId id : ids_) parts.push_back({id, tokens});
    must(cache_.begin_step(parts, nullptr));
  }
  void append(int layer, cudaStream_t stream) {
    const F16* keys = inputs_.data() + static_cast<std::size_t>(layer) *
                                           (inputs_.size() / static_cast<std::size_t>(layers_));
    const F16* values = keys + inputs_.size() / static_cast<std::size_t>(layers_) / 2;
    must(cache_.append(layer,
                       {HeadRows::dense(keys, Scalar::f16, kv_heads, head_dim),
                        HeadRows::dense(values, Scalar::f16, kv_heads, head_dim)},
                       stream));
  }
  void empty() {
    for (const SequenceId id : ids_) must(cache_.truncate(id, 0, nullptr));
    must(cudaDeviceSynchronize());
  }
  [[nodiscard]] Cache& cache() { return cache_; }

  /// Bytes that an append of one layer must read and write: inputs, exact copies, sealed codes.
  [[nodiscard]] std::size_t bytes_moved(int length, int tokens) const {
    const ClassShape& shape = cache_.memory_plan().classes[0].shape;
    const auto sequences = static_cast<std::size_t>(config_.max_sequences);
    std::size_t bytes = static_cast<std::size_t>(rows_) * row_halves() * 2 * sizeof(F16);
    if (shape.open) {
      return bytes + static_cast<std::size_t>(rows_) * shape.page_bytes / block_tokens;
    }
    const auto sealed = [&](int n) { return n > 0 ? shape.tail.sealed_before(n - 1) : 0; };
    const auto blocks =
        static_cast<std::size_t>((sealed(length + tokens) - sealed(length)) / block_tokens);
    return 2 * bytes + sequences * blocks * shape.page_bytes;
  }

 private:
  [[nodiscard]] static std::size_t row_halves() {
    return static_cast<std::size_t>(kv_heads) * head_dim;
  }
  static Span<std::byte> bytes(const DeviceArray<std::byte>& a) { return {a.data(), a.size()}; }

  int layers_, rows_;
  CacheConfig config_;
  cuda::CachePlan plan_;
  DeviceArray<std::byte> pages_, tails_, state_;
  std::vector<Aligned> mirror_;
  DeviceArray<F16> inputs_;  // [layer, side, row, head, channel]
  Cache cache_;
  std::vector<SequenceId> ids_;
};

/// Bytes a second, read and written, at which cudaMemcpy copies 1 GB.
double copy_rate() {
  static const double rate = [] {
    constexpr std::size_t bytes = std::size_t{1} << 30;
    DeviceArray<std::byte> from(bytes), to(bytes);
    LaunchGraph graph(1, [&](int, cudaStream_t stream) {
      must(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream));
    });
    std::vector<double> us;
    for (int i = 0; i < 11; ++i) us.push_back(graph.replay());
    std::sort(us.begin(), us.end());
    return 2.0 * bytes / us[us.size() / 2] * 1e6;
  }();
  return rate;
}

template <class Policy>
void append_rows(benchmark::State& state, int sequences, int length, int tokens, int layers) {
  Appending<Policy> step(sequences, length, tokens, layers);
  LaunchGraph graph(layers, [&](int layer, cudaStream_t stream) { step.append(layer, stream); });
  for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
  for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
  const auto moved = static_cast<double>(step.bytes_moved(length, tokens));
  report_bytes(state, moved, "of_copy", copy_rate());
}

/// begin_step and commit_step of single tokens, without appends: one block's worth of steps.
template <class Policy>
void bookkeeping_rows(benchmark::State& state, int sequences, int layers) {
  constexpr int steps = block_tokens;
  Appending<Policy> step(sequences, 0, steps, layers);
  must(step.cache().abandon_step(nullptr));
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) {
      step.begin(1);
      must(step.cache().appended_by_graph());
      must(step.cache().commit_step(nullptr));
    }
    must(cudaStreamSynchronize(nullptr));
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    state.SetIterationTime(time.count() / steps);
    step.empty();
  }
}

template <class Policy>
void add(const std::string& policy) {
  const auto row = [&](const char* name, auto f) {
    benchmark::RegisterBenchmark((policy + "/" + name).c_str(), f)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->Iterations(15);
  };
  using State = benchmark::State;
  row("decode_1", [](State& s) { append_rows<Policy>(s, 1, 261, 1, 32); });
  row("decode_1_seals", [](State& s) { append_rows<Policy>(s, 1, 256, 1, 32); });
  row("decode_64", [](State& s) { append_rows<Policy>(s, 64, 261, 1, 32); });
  row("decode_64_seals", [](State& s) { append_rows<Policy>(s, 64, 256, 1, 32); });
  row("prompt_1x8k", [](State& s) { append_rows<Policy>(s, 1, 0, 8192, 8); });
  row("bookkeeping_64x32", [](State& s) { bookkeeping_rows<Policy>(s, 64, 32); });
  row("prompt_8x4k", [](State& s) { append_rows<Policy>(s, 8, 0, 4096, 4); });
}

}  // namespace

int main(int argc, char** argv) {
  add<Compose<Identity>>("f16");
  add<Compose<Fp8>>("fp8");
  add<Compose<Int8>>("int8");
  add<Compose<Diet<4>>>("int4_K64_V128");
  add<Compose<Int4Rotated>>("int4_rotated");
  add<Compose<Kivi2Short>>("kivi2_g32");
  add<Compose<Diet<2>>>("2bit_K64_V128");
  return run_benchmarks(argc, argv, "copy_GB/s", copy_rate);
}
