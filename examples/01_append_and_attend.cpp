// Stores 200 tokens at 2 bits with KIVI and attends to them: the loop of a decoder, one layer of
// it.
#include <cstdio>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

int main() {
  // [decode]
  constexpr int query_heads = 8, kv_heads = 2, head_dim = 128;
  using Cache = terse::KVCache<terse::PagedLayout<>, terse::Kivi2>;
  const terse::CacheConfig config{.num_query_heads = query_heads,
                                  .num_kv_heads = kv_heads,
                                  .head_dim = head_dim,
                                  .max_tokens = 4096};

  const terse::MemoryPlan plan = must(Cache::plan(config));
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  Cache cache = must(Cache::create(config, {pages, tails, state}));
  const terse::StepPart step[] = {{must(cache.create_sequence()), 1}};

  std::vector<float> output(query_heads * head_dim);
  for (int token = 0; token < 200; ++token) {
    const auto keys = random_vectors(kv_heads, head_dim);
    const auto values = random_vectors(kv_heads, head_dim);
    const auto queries = random_vectors(query_heads, head_dim);
    must(cache.begin_step(step));
    must(cache.append(0, {rows(keys, kv_heads, head_dim), rows(values, kv_heads, head_dim)}));
    Memory workspace(terse::cpu::attend_workspace_bytes(cache.layer(0), step));
    must(terse::cpu::attend(cache.layer(0), {step, rows(queries, query_heads, head_dim)},
                            {rows(output, query_heads, head_dim)}, workspace));
    must(cache.commit_step());
  }
  // [decode]

  const terse::MemoryUsage usage = cache.memory_usage();
  std::printf("200 tokens: %.2f bits per element once sealed, %zu bytes of pages held\n",
              plan.classes[0].bits_per_element, usage.page_bytes_held);
  std::printf("output of head 0: %.4f %.4f %.4f ...\n", static_cast<double>(output[0]),
              static_cast<double>(output[1]), static_cast<double>(output[2]));
  return usage.live_tokens == 200 * kv_heads ? 0 : 1;
}
