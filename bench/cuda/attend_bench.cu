/// Decode attention on the device over cold pages: Google Benchmark with manual time, one row per
/// policy and shape. Time is that of a launch inside a replayed graph. With FlashInfer's headers
/// (TERSE_BENCH_FLASHINFER_DIR) its kernels follow, on the same lengths.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "cuda/attending.cuh"
#include "cuda/device_cache.cuh"
#include "cuda/flashinfer.hpp"
#include "cuda/policies.hpp"
#include "cuda/run_benchmarks.hpp"
#include "cuda/timing.cuh"

namespace {

using namespace terse;
using namespace terse::bench;

template <class Policy>
void attend_rows(benchmark::State& state, const BatchShape& batch) {
  const DeviceCache<Policy> cache(batch);
  Attending<Policy>(cache, batch).run(state);
  report_bytes(state, static_cast<double>(cache.bytes_read()), "of_ceiling", read_ceiling());
}

/// 32 sequences, lengths log-uniform in 1k ... 64k.
BatchShape ragged() {
  BatchShape batch;
  std::mt19937 random(11);
  for (int i = 0; i < 32; ++i) {
    const double x = static_cast<double>(random() - random.min()) / (random.max() - random.min());
    batch.lengths.push_back(static_cast<int>(1024 * std::pow(64.0, x)));
  }
  return batch;
}

struct NamedBatch {
  const char* name;
  BatchShape batch;
};
std::vector<NamedBatch> batches() {
  return {{"1x4k", uniform(1, 4096, 32, 8)},        {"1x32k", uniform(1, 32768, 32, 8)},
          {"1x128k", uniform(1, 131072, 32, 8)},    {"8x32k", uniform(8, 32768, 32, 8)},
          {"64x8k", uniform(64, 8192, 32, 8)},      {"8x4k_32/32", uniform(8, 4096, 32, 32)},
          {"8x32k_64/8", uniform(8, 32768, 64, 8)}, {"ragged", ragged()}};
}

template <class Policy>
void add(const std::string& policy) {
  for (const NamedBatch& row : batches()) {
    add_row(policy + "/" + row.name,
            [batch = row.batch](benchmark::State& state) { attend_rows<Policy>(state, batch); });
  }
}

#if defined(TERSE_BENCH_FLASHINFER)
void flashinfer_rows(benchmark::State& state, const FlashInferDecode::Shape& shape) {
  const FlashInferDecode decode(shape);
  LaunchGraph graph(std::max(20, decode.copies()), [&](int i, cudaStream_t stream) {
    decode.launch(i % decode.copies(), stream);
  });
  for (int i = 0; i < 3; ++i) static_cast<void>(graph.replay());
  for (auto _ : state) state.SetIterationTime(graph.replay() * 1e-6);
  report_bytes(state, static_cast<double>(decode.bytes_read()), "of_ceiling", read_ceiling());
  decode.launch(0, nullptr);
  must(cudaDeviceSynchronize());
  if (!(decode.error() < 5e-3)) state.SkipWithError("the output is wrong");
}

/// Both of its kernels, both of its types, pages of 16 and 64 tokens.
void add_flashinfer() {
  for (const bool is_fp8 : {false, true}) {
    for (const bool uses_tensor_cores : {true, false}) {
      for (const int page_tokens : {16, 64}) {
        const std::string kernel = std::string("flashinfer_") + (is_fp8 ? "fp8" : "f16") +
                                   (uses_tensor_cores ? "_tensor_p" : "_cuda_p") +
                                   std::to_string(page_tokens);
        for (const NamedBatch& row : batches()) {
          const BatchShape& b = row.batch;
          const FlashInferDecode::Shape shape{b.query_heads, b.kv_heads, b.lengths,
                                              page_tokens,   is_fp8,     uses_tensor_cores};
          add_row(kernel + "/" + row.name,
                  [shape](benchmark::State& state) { flashinfer_rows(state, shape); });
        }
      }
    }
  }
}
#endif

}  // namespace

int main(int argc, char** argv) {
  add<Compose<Identity>>("f16");
  add<Compose<Fp8>>("fp8");
  add<Compose<Int8>>("int8");
  add<Compose<Diet<4>>>("int4_K64_V128");
  add<Compose<Int4Rotated>>("int4_rotated");
  add<Compose<Kivi4Short>>("kivi4_g32");
  add<Compose<Diet<3>>>("3bit_K64_V128");
  add<Compose<Kivi2Short>>("kivi2_g32");
  add<Compose<Diet<2>>>("2bit_K64_V128");
  add<Compose<Open<Shaped2>>>("shaped_2");
  add<Compose<Open<ShapedTrellis3>>>("shaped_trellis_3");
  add<Compose<Open<ShapedTrellis2>>>("shaped_trellis_2");
  add<Compose<Open<ShapedTrellis2K1V>>>("shaped_trellis_2k_1v");
  add<Compose<NvFp4>>("nvfp4");
  add<Compose<TurboQuant4>>("turboquant_4");
  add<Compose<TurboQuant3>>("turboquant_3");
  add<Compose<TurboQuant2>>("turboquant_2");
  add<Compose<PaluOfFour>>("latents_f16");
  add<Compose<PaluOfFour, Int4Rotated>>("latents_int4_rotated");
#if defined(TERSE_BENCH_FLASHINFER)
  add_flashinfer();
#endif
  return run_benchmarks(argc, argv, "read_ceiling_GB/s", read_ceiling);
}
