// Stores 3000 tokens at 2 bits with KIVI, copies the cache to the GPU and attends to it there, in a
// stream, without unpacking it; then on the host, and compares.
#include <cmath>
#include <cstdio>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.cuh"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

namespace {

void must(cudaError_t code) {
  example::must(terse::cuda::to_status(code, cudaGetErrorString(code)));
}

/// Device memory for the life of the program.
template <class T>
terse::Span<T> on_device(std::size_t count) {
  void* data = nullptr;
  must(cudaMalloc(&data, count * sizeof(T)));
  return {static_cast<T*>(data), count};
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  constexpr int query_heads = 8, kv_heads = 2, head_dim = 128, tokens = 3000, chunk = 100;
  using Cache = terse::KVCache<terse::PagedLayout<>, terse::Kivi2>;
  const terse::CacheConfig config{.num_query_heads = query_heads,
                                  .num_kv_heads = kv_heads,
                                  .head_dim = head_dim,
                                  .max_tokens = 4096,
                                  .max_step_tokens = chunk};
  const terse::MemoryPlan plan = must(Cache::plan(config));
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  const terse::Buffers host{pages, tails, state};
  Cache cache = must(Cache::create(config, host));
  const terse::SequenceId sequence = must(cache.create_sequence());
  for (int done = 0; done < tokens; done += chunk) {
    const auto keys = random_vectors(chunk * kv_heads, head_dim);
    const auto values = random_vectors(chunk * kv_heads, head_dim);
    const terse::StepPart step[] = {{sequence, chunk}};
    must(cache.begin_step(step));
    must(cache.append(0, {rows(keys, kv_heads, head_dim), rows(values, kv_heads, head_dim)}));
    must(cache.commit_step());
  }
  const std::vector<float> queries = random_vectors(query_heads, head_dim);
  const terse::StepPart part[] = {{sequence, 1}};

  // [device]
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream));
  const terse::Buffers device{on_device<std::byte>(host.pages.size()),
                              on_device<std::byte>(host.tails.size()),
                              on_device<std::byte>(host.state.size())};
  must(terse::cuda::copy_buffers(host, device, stream));
  const auto layer = terse::cuda::rebase(cache.layer(0), host, device);

  const auto parts = on_device<terse::StepPart>(1);
  const auto q = on_device<float>(queries.size()), out = on_device<float>(queries.size());
  must(cudaMemcpyAsync(parts.data(), part, sizeof part, cudaMemcpyDefault, stream));
  must(cudaMemcpyAsync(q.data(), queries.data(), q.size() * sizeof(float), cudaMemcpyDefault,
                       stream));
  const terse::cuda::AttendInputs in{
      parts.data(), 1, 1,
      terse::HeadRows::dense(q.data(), terse::Scalar::f32, query_heads, head_dim)};
  const terse::cuda::AttendOutputs results{
      terse::MutableHeadRows::dense(out.data(), terse::Scalar::f32, query_heads, head_dim)};
  const auto workspace = on_device<std::byte>(must(terse::cuda::attend_workspace_bytes(layer, in)));
  must(terse::cuda::clear_workspace(workspace, stream));
  must(terse::cuda::attend<terse::cuda::HeadDims<head_dim>>(layer, in, results, workspace, {},
                                                            stream));
  // [device]

  std::vector<float> from_device(queries.size()), from_host(queries.size());
  must(cudaMemcpyAsync(from_device.data(), out.data(), out.size() * sizeof(float),
                       cudaMemcpyDefault, stream));
  must(cudaStreamSynchronize(stream));
  Memory host_workspace(terse::cpu::attend_workspace_bytes(cache.layer(0), part));
  must(terse::cpu::attend(cache.layer(0), {part, rows(queries, query_heads, head_dim)},
                          {rows(from_host, query_heads, head_dim)}, host_workspace));
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < from_host.size(); ++i) {
    difference += std::pow(from_device[i] - from_host[i], 2);
    norm += std::pow(from_host[i], 2);
  }
  const double relative = std::sqrt(difference / norm);
  std::printf("%d tokens at %.2f bits: GPU and host differ by %.1e (relative)\n", tokens,
              plan.classes[0].bits_per_element, relative);
  return relative < 2e-3 ? 0 : 1;
}
