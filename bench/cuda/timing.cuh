/// Device times: a graph of many launches, replayed; and the rate at which this card reads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <vector>

#include "cuda/device_cache.cuh"

namespace terse::bench {

/// Captures `launches` calls of `launch(i, stream)` into a graph.
class LaunchGraph {
 public:
  template <class Launch>
  LaunchGraph(int launches, Launch&& launch) : launches_(launches) {
    must(cudaStreamCreate(&stream_));
    must(cudaEventCreate(&start_));
    must(cudaEventCreate(&stop_));
    cudaGraph_t graph;
    must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) launch(i, stream_);
    must(cudaStreamEndCapture(stream_, &graph));
    must(cudaGraphInstantiate(&exec_, graph, 0));
    must(cudaGraphDestroy(graph));
  }
  LaunchGraph(const LaunchGraph&) = delete;
  LaunchGraph& operator=(const LaunchGraph&) = delete;
  ~LaunchGraph() {
    cudaGraphExecDestroy(exec_);
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }

  /// Microseconds a launch, of one replay.
  [[nodiscard]] double replay() {
    must(cudaEventRecord(start_, stream_));
    must(cudaGraphLaunch(exec_, stream_));
    must(cudaEventRecord(stop_, stream_));
    must(cudaEventSynchronize(stop_));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, start_, stop_));
    return 1e3 * ms / launches_;
  }

 private:
  int launches_;
  cudaStream_t stream_;
  cudaEvent_t start_, stop_;
  cudaGraphExec_t exec_;
};

static __global__ void read_all(const uint4* data, std::size_t count, std::uint32_t* sink) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  std::uint32_t sum = 0;
  std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = data[i], b = data[i + step], c = data[i + 2 * step], d = data[i + 3 * step];
    sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^
           d.w;
  }
  for (; i < count; i += step) sum += data[i].x;
  if (sum == 0x12345678u) *sink = sum;
}

/// Bytes a second at which plain 16-byte loads read 4 GB: the ceiling that rows are compared with.
inline double read_ceiling() {
  static const double rate = [] {
    constexpr std::size_t bytes = std::size_t{4} << 30;
    DeviceArray<std::byte> data(bytes);
    DeviceArray<std::uint32_t> sink(1);
    must(cudaMemset(data.data(), 1, bytes));
    LaunchGraph graph(1, [&](int, cudaStream_t stream) {
      read_all<<<132 * 8, 512, 0, stream>>>(reinterpret_cast<const uint4*>(data.data()), bytes / 16,
                                            sink.data());
    });
    std::vector<double> us;
    for (int i = 0; i < 11; ++i) us.push_back(graph.replay());
    std::sort(us.begin(), us.end());
    return bytes / us[us.size() / 2] * 1e6;
  }();
  return rate;
}

/// Bytes a second, read and written, at which cudaMemcpy copies 1 GB.
inline double copy_rate() {
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

}  // namespace terse::bench
