/// Appending on the device: Google Benchmark with manual time, one row per policy and step. Time is
/// that of one layer's launch inside a replayed graph of many layers, or, in rows of bookkeeping,
/// what a step costs on the host, waiting for the device included.
#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "terse/cuda/export_plain.cuh"

#include "cuda/appending.cuh"
#include "cuda/policies.hpp"
#include "cuda/run_benchmarks.hpp"
#include "cuda/timing.cuh"

namespace {

using namespace terse;
using namespace terse::bench;

template <class Policy>
void append_rows(benchmark::State& state, int sequences, int length, int tokens, int layers,
                 const AppendForm& form = {}) {
  Appending<Policy> step(sequences, length, tokens, layers);
  step.prepare(form);
  LaunchGraph graph(layers,
                    [&](int layer, cudaStream_t stream) { step.append(layer, stream, form); });
  for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
  for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
  const auto moved = static_cast<double>(step.bytes_moved(length, tokens));
  report_bytes(state, moved, "of_copy", copy_rate());
}

/// Appends of a token that seals a block whose codes wait in the tail; or encode_ahead after them,
/// which finds nothing to encode.
template <class Policy, bool Seals>
void ahead_rows(benchmark::State& state, int length, int layers) {
  Appending<Policy> step(1, length, 1, layers, {.encodes_ahead = true},
                         [](auto& cache, int layer) { must(cache.encode_ahead(layer, nullptr)); });
  for (int layer = 0; layer < layers && !Seals; ++layer) step.append(layer, nullptr);
  LaunchGraph graph(layers, [&](int layer, cudaStream_t stream) {
    if (Seals) return step.append(layer, stream);
    must(step.cache().encode_ahead(layer, stream));
  });
  for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
  for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
}

/// Export of one sequence to fp16 pages of 16 tokens, a layer a launch.
template <class Policy>
void export_rows(benchmark::State& state, int tokens, int layers) {
  Appending<Policy> step(1, tokens, 1, layers);
  must(step.cache().abandon_step(nullptr));
  constexpr int page_tokens = 16;
  std::vector<std::int32_t> pages(static_cast<std::size_t>(ceil_div(tokens, page_tokens)));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(9));
  const DeviceArray<std::int32_t> table(pages), counts(kv_heads);
  const DeviceArray<SequenceId> sequences(step.ids());
  const std::size_t numbers = pages.size() * page_tokens * kv_heads * head_dim;
  const DeviceArray<F16> keys(numbers), values(numbers);
  const auto num_pages = static_cast<int>(pages.size());
  const PlainPages to = PlainPages::nhd(
      Scalar::f16,
      {.num_pages = num_pages, .page_tokens = page_tokens, .heads = kv_heads, .channels = head_dim},
      PageTable::dense(table.data(), 1, num_pages));
  LaunchGraph graph(layers, [&](int layer, cudaStream_t stream) {
    must(cuda::export_plain(step.cache().layer(layer), sequences.data(), 1, to,
                            {keys.data(), values.data(), counts.data()}, stream));
  });
  for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
  for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
  const ClassShape& shape = step.cache().memory_plan().classes[0].shape;
  const auto blocks = static_cast<std::size_t>(ceil_div(tokens, block_tokens));
  report_bytes(state, static_cast<double>(blocks * shape.page_bytes + 4 * numbers), "of_copy",
               copy_rate());
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

/// Committed tokens, 256 or some more, after which one token more seals a block, or begins one
/// where there is no tail.
template <class Policy>
int length_before_seal() {
  constexpr TailSpec tail = PolicyOf<Policy>::tail;
  int length = 256;
  if constexpr (tail.min_tokens > 0) {
    while (tail.sealed_before(length) == tail.sealed_before(length - 1)) ++length;
  }
  return length;
}

template <class Policy>
void add(const std::string& policy) {
  const auto row = [&](const char* name, auto f) { add_row(policy + "/" + name, f); };
  using State = benchmark::State;
  row("decode_1", [](State& s) { append_rows<Policy>(s, 1, 261, 1, 32); });
  row("decode_1_seals",
      [](State& s) { append_rows<Policy>(s, 1, length_before_seal<Policy>(), 1, 32); });
  row("decode_64", [](State& s) { append_rows<Policy>(s, 64, 261, 1, 32); });
  row("decode_64_seals",
      [](State& s) { append_rows<Policy>(s, 64, length_before_seal<Policy>(), 1, 32); });
  row("prompt_1x8k", [](State& s) { append_rows<Policy>(s, 1, 0, 8192, 8); });
  row("bookkeeping_64x32", [](State& s) { bookkeeping_rows<Policy>(s, 64, 32); });
  row("prompt_1x8k_from_pages",
      [](State& s) { append_rows<Policy>(s, 1, 0, 8192, 8, {.from_pages = true}); });
  row("prompt_1x8k_rope", [](State& s) { append_rows<Policy>(s, 1, 0, 8192, 8, {.turns = true}); });
  row("decode_1_rope", [](State& s) { append_rows<Policy>(s, 1, 261, 1, 32, {.turns = true}); });
  row("export_1x8k", [](State& s) { export_rows<Policy>(s, 8192, 8); });
  row("prompt_8x4k", [](State& s) { append_rows<Policy>(s, 8, 0, 4096, 4); });
}

template <class Policy>
void add_ahead(const std::string& policy) {
  using State = benchmark::State;
  add_row(policy + "/decode_1_seals_ahead",
          [](State& s) { ahead_rows<Policy, true>(s, length_before_seal<Policy>(), 32); });
  add_row(policy + "/encode_ahead_of_nothing",
          [](State& s) { ahead_rows<Policy, false>(s, 261, 32); });
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
  add<Compose<Shaped2>>("shaped_2");
  add_ahead<Compose<Shaped2>>("shaped_2");
  add<Compose<Open<Shaped2>>>("shaped_2_open");
  add<Compose<ShapedTrellis2>>("shaped_trellis_2");
  add_ahead<Compose<ShapedTrellis2>>("shaped_trellis_2");
  add<Compose<Open<ShapedTrellis2>>>("shaped_trellis_2_open");
  add<Compose<NvFp4>>("nvfp4");
  add<Compose<TurboQuant4>>("turboquant_4");
  add<Compose<TurboQuant3>>("turboquant_3");
  add<Compose<TurboQuant2>>("turboquant_2");
  return run_benchmarks(argc, argv, "copy_GB/s", copy_rate);
}
