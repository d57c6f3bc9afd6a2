/// ggml's CPU flash attention on the shapes of attend_bench: one query row, a mask of zeros, keys
/// and values contiguous per head (its fastest layout), copies in turn beyond cold_bytes.
///
/// Queries, keys and values are random normal numbers, the same for every KV head. ggml must have
/// been built with -DGGML_OPENMP=OFF, so that its threads wait by spinning as SpinPool's do, and be
/// a version that takes masks of one row (0.9 and newer).
///
/// Rows are called ggml/TYPE/QUERY_HEADS/KV_HEADSxDIMxTOKENS/threads:N/cold and carry median_us,
/// stored_bytes and bytes_per_second.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ggml-cpu.h>
#include <ggml.h>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "support/filled_cache.hpp"

namespace terse::bench {
namespace {

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
struct FreePool {
  void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
};

/// One flash attention call after another on copies in turn.
class GgmlAttention {
 public:
  GgmlAttention(ggml_type type, const Shape& shape, int threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = 100;  // wait for work by spinning, as SpinPool does
    pool_.reset(ggml_threadpool_new(&params));
    const std::size_t row = ggml_row_size(type, shape.head_dim);
    stored_bytes_ = 2 * row * static_cast<std::size_t>(shape.tokens * shape.kv_heads);
    const std::size_t copies = cold_bytes / stored_bytes_ + 2;
    context_.reset(ggml_init(
        {.mem_size = copies * (stored_bytes_ + (std::size_t{1} << 20)) + (std::size_t{64} << 20),
         .mem_buffer = nullptr,
         .no_alloc = false}));
    ggml_context* c = context_.get();
    std::minstd_rand generator(7);
    std::normal_distribution<float> normal;
    ggml_tensor* queries =
        ggml_new_tensor_3d(c, GGML_TYPE_F32, shape.head_dim, 1, shape.query_heads);
    std::generate_n(static_cast<float*>(queries->data), ggml_nelements(queries),
                    [&] { return normal(generator); });
    ggml_tensor* mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, shape.tokens, 1);
    std::memset(mask->data, 0, ggml_nbytes(mask));
    std::vector<float> numbers(static_cast<std::size_t>(shape.tokens * shape.head_dim));
    for (float& x : numbers) x = normal(generator);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    for (std::size_t i = 0; i < copies; ++i) {
      ggml_tensor* sides[2];
      for (ggml_tensor*& side : sides) {
        side = ggml_new_tensor_3d(c, type, shape.head_dim, shape.tokens, shape.kv_heads);
        for (int h = 0; h < shape.kv_heads; ++h) {
          ggml_quantize_chunk(
              type, numbers.data(),
              static_cast<char*>(side->data) + static_cast<std::size_t>(h * shape.tokens) * row, 0,
              shape.tokens, shape.head_dim, nullptr);
        }
      }
      ggml_cgraph* graph = ggml_new_graph_custom(c, 16, false);
      ggml_build_forward_expand(
          graph, ggml_flash_attn_ext(c, queries, sides[0], sides[1], mask, scale, 0.0f, 0.0f));
      ggml_cplan plan = ggml_graph_plan(graph, threads, pool_.get());
      work_.emplace_back(plan.work_size);
      plan.work_data = work_.back().data();
      graphs_.push_back({graph, plan});
    }
  }

  double run_once() {
    auto& [graph, plan] = graphs_[next_];
    next_ = (next_ + 1) % graphs_.size();
    const auto begin = std::chrono::steady_clock::now();
    if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("ggml refused its graph");
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  [[nodiscard]] std::size_t stored_bytes() const { return stored_bytes_; }

 private:
  struct Graph {
    ggml_cgraph* graph;
    ggml_cplan plan;
  };
  std::unique_ptr<ggml_threadpool, FreePool> pool_;
  std::unique_ptr<ggml_context, FreeContext> context_;
  std::vector<Graph> graphs_;
  std::vector<std::vector<std::uint8_t>> work_;
  std::size_t stored_bytes_ = 0, next_ = 0;
};

void attend(benchmark::State& state, ggml_type type, const Shape& shape, int threads) {
  GgmlAttention attention(type, shape, threads);
  for (int i = 0; i < 3; ++i) attention.run_once();
  std::vector<double> seconds;
  for (auto _ : state) {
    seconds.push_back(attention.run_once());
    state.SetIterationTime(seconds.back());
  }
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  state.counters["stored_bytes"] = static_cast<double>(attention.stored_bytes());
  state.counters["bytes_per_second"] = static_cast<double>(attention.stored_bytes()) / *middle;
  state.counters["median_us"] = *middle * 1e6;
}

}  // namespace
}  // namespace terse::bench

int main(int argc, char** argv) {
  using namespace terse::bench;  // NOLINT: a program's main
  ggml_cpu_init();
  for (const Shape& shape :
       {Shape{9, 3, 64, 4096}, Shape{32, 8, 128, 4096}, Shape{32, 8, 128, 32768}}) {
    for (const int threads : {1, 2}) {
      for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        const std::string name =
            "ggml/" + std::string(ggml_type_name(type)) + "/" + std::to_string(shape.query_heads) +
            "/" + std::to_string(shape.kv_heads) + "x" + std::to_string(shape.head_dim) + "x" +
            std::to_string(shape.tokens) + "/threads:" + std::to_string(threads) + "/cold";
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { attend(state, type, shape, threads); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond)
            ->MinTime(0.2);
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
