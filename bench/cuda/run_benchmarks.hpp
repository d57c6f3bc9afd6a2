/// The end of a device benchmark's main: runs what is registered, and names the card.
#pragma once

#include <cuda_runtime_api.h>
#include <string>

#include <benchmark/benchmark.h>

namespace terse::bench {

/// `rate`: bytes a second that rows are compared with, reported as `rate_name` in GB/s.
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
