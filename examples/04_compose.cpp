// Policies of the three families, alone and together: each is one line.
#include <cstdio>
#include <vector>

#include "terse/terse.hpp"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

namespace {

constexpr int tokens = 2000, heads = 4, head_dim = 128, rank = 256;

terse::ProjectionFactors random_factors() {
  static const auto keys = random_vectors(heads * head_dim, rank);
  static const auto values = random_vectors(heads * head_dim, rank);
  return {rank, rank, keys.data(), values.data()};
}

/// Fills a cache with `tokens` tokens, evicting as it grows, and prints what it holds.
template <class Policy>
void show(const char* name, const terse::PolicyConfig<terse::PolicyOf<Policy>>& policy = {}) {
  using Cache = terse::KVCache<terse::PagedLayout<terse::HeadPaging::per_head>, Policy>;
  const terse::CacheConfig config{.num_query_heads = heads,
                                  .num_kv_heads = heads,
                                  .head_dim = head_dim,
                                  .max_tokens = tokens + 64,
                                  .rope = {.rotary_dim = head_dim}};
  const terse::MemoryPlan plan = must(Cache::plan(config, {policy}));
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  Cache cache = must(Cache::create(config, {pages, tails, state}, {policy}));
  const terse::SequenceId sequence = must(cache.create_sequence());
  const terse::StepPart step[] = {{sequence, 1}};

  const terse::ClassShape& shape = plan.classes[0].shape;
  const int key_streams = shape.unit.units * shape.unit.key_streams;
  const int value_streams = shape.unit.units * shape.unit.value_streams;
  const auto keys = random_vectors(key_streams, shape.key_width);
  const auto values = random_vectors(value_streams, shape.value_width);
  for (int token = 0; token < tokens; ++token) {
    must(cache.begin_step(step));
    must(cache.append(0, {rows(keys, key_streams, shape.key_width),
                          rows(values, value_streams, shape.value_width)}));
    must(cache.commit_step());
    if (token % 64 == 63) must(cache.evict(sequence));
  }
  const terse::MemoryUsage usage = cache.memory_usage();
  std::printf("%-36s %6.2f bits per element %6lld tokens kept %8.1f KiB of pages and tails\n", name,
              plan.classes[0].bits_per_element,
              static_cast<long long>(usage.live_tokens / shape.unit.units),
              static_cast<double>(usage.page_bytes_held + usage.tail_bytes) / 1024.0);
}

}  // namespace

int main() {
  using namespace terse;  // NOLINT(google-build-using-namespace): the compositions are the point
  const ProjectionFactors factors = random_factors();
  const Span<const ProjectionFactors> latents{&factors, 1};

  std::printf("%d tokens of %d heads of %d channels:\n", tokens, heads, head_dim);
  show<Compose<>>("identity");
  show<Compose<Kivi2>>("KIVI-2");
  show<Compose<H2O>>("H2O", {.eviction = {.heavy_tokens = 250, .recent_tokens = 250}});
  show<Compose<PaluJoint>>("latents", {.factors = latents});
  show<Compose<Int4Rotated, H2O>>("int4 x H2O",
                                  {.eviction = {.heavy_tokens = 250, .recent_tokens = 250}});
  show<Compose<Kivi2, StreamingLLM>>("KIVI-2 x StreamingLLM",
                                     {.eviction = {.sink_tokens = 4, .window_tokens = 500}});
  show<Compose<PaluJoint, Int4Rotated>>("latents x int4", {.factors = latents});
  show<Compose<PaluJoint, Int4Rotated, StreamingLLM>>(
      "latents x int4 x StreamingLLM",
      {.eviction = {.sink_tokens = 4, .window_tokens = 500}, .factors = latents});
  show<Compose<KeyValue<Int8, Int4Rotated>>>("int8 keys, int4 values");
  return 0;
}
