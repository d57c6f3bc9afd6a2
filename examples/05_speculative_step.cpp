// Speculative decoding: four drafted tokens in one step, of which two are accepted, and a fork.
#include <cmath>
#include <cstdio>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

namespace {

constexpr int query_heads = 4, kv_heads = 2, head_dim = 64, drafted = 4, accepted = 2;
using Cache = terse::KVCache<terse::PagedLayout<>, terse::Kivi4>;

/// Keys, values and queries of `count` tokens.
struct Tokens {
  explicit Tokens(int count)
      : keys(random_vectors(count * kv_heads, head_dim)),
        values(random_vectors(count * kv_heads, head_dim)),
        queries(random_vectors(count * query_heads, head_dim)) {}
  std::vector<float> keys, values, queries;
};

void append(Cache& cache, const Tokens& tokens) {
  must(cache.append(
      0, {rows(tokens.keys, kv_heads, head_dim), rows(tokens.values, kv_heads, head_dim)}));
}

/// Outputs `[row, head, channel]`; row i sees the tokens up to its own.
std::vector<float> attend(const Cache& cache, const terse::StepPart& part, const Tokens& tokens) {
  std::vector<float> output(static_cast<std::size_t>(part.tokens * query_heads * head_dim));
  const terse::Span<const terse::StepPart> parts{&part, 1};
  Memory workspace(terse::cpu::attend_workspace_bytes(cache.layer(0), parts));
  must(terse::cpu::attend(cache.layer(0), {parts, rows(tokens.queries, query_heads, head_dim)},
                          {rows(output, query_heads, head_dim)}, workspace));
  return output;
}

long long length(const Cache& cache, terse::SequenceId sequence) {
  return must(cache.length(sequence));
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] - b[i]);
  return sum;
}

}  // namespace

int main() {
  const terse::CacheConfig config{.num_query_heads = query_heads,
                                  .num_kv_heads = kv_heads,
                                  .head_dim = head_dim,
                                  .max_sequences = 2,
                                  .max_tokens = 1024,
                                  .max_step_tokens = 300};
  const terse::MemoryPlan plan = must(Cache::plan(config));
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  Cache cache = must(Cache::create(config, {pages, tails, state}));
  const terse::SequenceId sequence = must(cache.create_sequence());

  // A prompt: one step of 300 tokens.
  const terse::StepPart prompt[] = {{sequence, 300}};
  must(cache.begin_step(prompt));
  append(cache, Tokens(300));
  must(cache.commit_step());

  // A second sequence that shares the prompt's pages.
  const std::size_t before_fork = cache.memory_usage().page_bytes_held;
  const terse::SequenceId twin = must(cache.fork(sequence));
  const std::size_t by_fork = cache.memory_usage().page_bytes_held - before_fork;

  // The draft: four rows, each of which sees the ones before it.
  const Tokens draft(drafted);
  const terse::StepPart step[] = {{sequence, drafted}};
  must(cache.begin_step(step));
  append(cache, draft);
  const std::vector<float> drafted_outputs = attend(cache, step[0], draft);
  const int accepted_tokens[] = {accepted};
  must(cache.commit_step(accepted_tokens));

  // The twin takes the two accepted tokens one by one: the same outputs.
  double difference = 0;
  for (int i = 0; i < accepted; ++i) {
    const auto part = [i](const std::vector<float>& x, int heads) {
      const auto first = x.begin() + static_cast<std::ptrdiff_t>(i * heads * head_dim);
      return std::vector<float>(first, first + heads * head_dim);
    };
    Tokens one(1);
    one.keys = part(draft.keys, kv_heads);
    one.values = part(draft.values, kv_heads);
    one.queries = part(draft.queries, query_heads);
    const terse::StepPart single[] = {{twin, 1}};
    must(cache.begin_step(single));
    append(cache, one);
    difference += distance(attend(cache, single[0], one), part(drafted_outputs, query_heads));
    must(cache.commit_step());
  }

  std::printf("lengths: %lld and %lld tokens; the fork took %zu bytes of pages\n",
              length(cache, sequence), length(cache, twin), by_fork);
  std::printf("draft against single steps: outputs differ by %.1e in all\n", difference);
  return length(cache, sequence) == 302 && length(cache, twin) == 302 && difference < 1e-3 ? 0 : 1;
}
