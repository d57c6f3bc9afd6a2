/// What the device's benchmarks share: counters of a row, and the end of main.
#pragma once

#include <cuda_runtime_api.h>
#include <string>
#include <utility>

#include <benchmark/benchmark.h>

namespace terse::bench {

/// Bytes of an iteration, their rate, and its share of `limit` bytes a second as `share_name`.
inline void report_bytes(benchmark::State& state, double bytes, const char* share_name,
                         double limit) {
  using benchmark::Counter;
  state.counters["bytes"] = bytes;
  state.counters["GB/s"] =
      Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate, Counter::kIs1000);
  state.counters[share_name] = Counter(bytes / limit, Counter::kIsIterationInvariantRate);
}

/// A row in microseconds by manual time, 15 iterations.
template <class F>
void add_row(const std::string& name, F&& f) {
  benchmark::RegisterBenchmark(name.c_str(), std::forward<F>(f))
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(15);
}

/// Runs what is registered, and names the card. `rate`: bytes a second that rows are compared with,
/// reported as `rate_name` in GB/s.
inline int run_benchmarks(int argc, char** argv, const char* rate_name, double (*rate)()) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) == cudaSuccess) {
    benchmark::AddCustomContext("device", device.name);
    benchmark::AddCustomContext(rate_name, std::to_string(rate() * 1e-9));
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace terse::bench
