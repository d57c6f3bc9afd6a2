// Keeps a cache on the GPU: 3000 tokens are appended there at 2 bits with KIVI, and attended to
// without unpacking them. A cache on the host is fed the same and compared.
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.cuh"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

namespace {

constexpr int query_heads = 8, kv_heads = 2, head_dim = 128, tokens = 3000, chunk = 100;

void must(cudaError_t code) {
  example::must(terse::cuda::to_status(code, cudaGetErrorString(code)));
}

/// Device memory for the life of the program.
template <class T = std::byte>
terse::Span<T> on_device(std::size_t count) {
  void* data = nullptr;
  if (count > 0) must(cudaMalloc(&data, count * sizeof(T)));
  return {static_cast<T*>(data), count};
}

void copy(terse::Span<float> to, const std::vector<float>& from, cudaStream_t stream) {
  must(cudaMemcpyAsync(to.data(), from.data(), from.size() * sizeof(float), cudaMemcpyDefault,
                       stream));
}

terse::HeadRows device_rows(terse::Span<float> data, int heads) {
  return terse::HeadRows::dense(data.data(), terse::Scalar::f32, heads, head_dim);
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  const terse::CacheConfig config{.num_query_heads = query_heads,
                                  .num_kv_heads = kv_heads,
                                  .head_dim = head_dim,
                                  .max_tokens = 4096,
                                  .max_step_tokens = chunk};
  // [create]
  using Cache = terse::cuda::KVCache<terse::PagedLayout<>, terse::Kivi2>;
  const terse::cuda::CachePlan plan = must(Cache::plan(config));
  Memory mirror(plan.mirror_bytes);
  const terse::cuda::CacheBuffers buffers{on_device(plan.pages_bytes), on_device(plan.tails_bytes),
                                          on_device(plan.state_bytes), mirror};
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream));
  Cache cache = must(Cache::create(config, buffers, stream));
  const terse::SequenceId sequence = must(cache.create_sequence(stream));
  // [create]

  using HostCache = terse::KVCache<terse::PagedLayout<>, terse::Kivi2>;
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes);
  Memory state(plan.host.state_bytes);
  HostCache host = must(HostCache::create(config, {pages, tails, state}));
  must(host.create_sequence());

  const auto k = on_device<float>(chunk * kv_heads * head_dim);
  const auto v = on_device<float>(chunk * kv_heads * head_dim);
  const auto q = on_device<float>(query_heads * head_dim);
  const auto out = on_device<float>(query_heads * head_dim);
  const auto newest = on_device<terse::StepPart>(1);
  const terse::StepPart part[] = {{sequence, 1}};
  must(cudaMemcpyAsync(newest.data(), part, sizeof part, cudaMemcpyDefault, stream));
  const terse::cuda::AttendInputs in{newest.data(), 1, 1, device_rows(q, query_heads)};
  const auto workspace = on_device(must(terse::cuda::attend_workspace_bytes(cache.layer(0), in)));
  must(terse::cuda::clear_workspace(workspace, stream));

  std::vector<float> queries;
  for (int done = 0; done < tokens; done += chunk) {
    const auto keys = random_vectors(chunk * kv_heads, head_dim);
    const auto values = random_vectors(chunk * kv_heads, head_dim);
    queries = random_vectors(query_heads, head_dim);
    copy(k, keys, stream);
    copy(v, values, stream);
    copy(q, queries, stream);
    // [step]
    const terse::StepPart step[] = {{sequence, chunk}};
    must(cache.begin_step(step, stream));
    must(cache.append(0, {device_rows(k, kv_heads), device_rows(v, kv_heads)}, stream));
    must(terse::cuda::attend<terse::cuda::HeadDims<head_dim>>(
        cache.layer(0), in,
        {terse::MutableHeadRows::dense(out.data(), terse::Scalar::f32, query_heads, head_dim)},
        workspace, {}, stream));
    must(cache.commit_step(stream));
    // [step]
    must(host.begin_step(step));
    must(host.append(0, {rows(keys, kv_heads, head_dim), rows(values, kv_heads, head_dim)}));
    must(host.commit_step());
  }
  must(cache.recover(sequence, stream));  // ok: no NaN was among the keys and values

  std::vector<float> from_device(queries.size()), from_host(queries.size());
  must(cudaMemcpyAsync(from_device.data(), out.data(), out.size() * sizeof(float),
                       cudaMemcpyDefault, stream));
  std::vector<std::byte> device_pages(plan.pages_bytes);
  must(cudaMemcpyAsync(device_pages.data(), buffers.pages.data(), device_pages.size(),
                       cudaMemcpyDefault, stream));
  must(cudaStreamSynchronize(stream));
  Memory host_workspace(terse::cpu::attend_workspace_bytes(host.layer(0), part));
  must(terse::cpu::attend(host.layer(0),
                          {part, rows(std::as_const(queries), query_heads, head_dim)},
                          {rows(from_host, query_heads, head_dim)}, host_workspace));
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < from_host.size(); ++i) {
    difference += std::pow(from_device[i] - from_host[i], 2);
    norm += std::pow(from_host[i], 2);
  }
  const double relative = std::sqrt(difference / norm);
  const terse::MemoryUsage usage = cache.memory_usage();
  const terse::Span<std::byte> host_pages = pages;
  std::size_t unequal = 0;
  for (std::size_t i = 0; i < usage.page_bytes_held; ++i) {
    unequal += device_pages[i] != host_pages.data()[i] ? 1 : 0;
  }
  std::printf("%d tokens at %.2f bits, %zu of %zu stored bytes differ from the host's\n", tokens,
              plan.host.classes[0].bits_per_element, unequal, usage.page_bytes_held);
  std::printf("attention differs by %.1e (relative)\n", relative);
  return relative < 2e-3 && unequal == 0 ? 0 : 1;
}
