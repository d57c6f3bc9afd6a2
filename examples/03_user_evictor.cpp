// An evictor of one's own: TOVA, written in this file, checked, and used on 4-bit codes.
#include <cstdio>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/policy/selection.hpp"
#include "terse/terse.hpp"
#include "terse/testing/conformance.hpp"

#include "support/example.hpp"

using example::Memory, example::must, example::random_vectors, example::rows;

// [evictor]
/// TOVA (Transformers are Multi-State RNNs, arXiv 2401.06104, section 3.2): when the budget is
/// exceeded, the tokens to which the newest query paid least attention are dropped. The paper
/// averages over the heads of a layer; here each KV head decides for its query group.
struct Tova {
  struct Params {
    int budget_tokens = 64;  ///< tokens kept per KV head

    [[nodiscard]] terse::Status validate() const {
      if (budget_tokens > 0) return {};
      return terse::error(terse::StatusCode::invalid_argument,
                          "Tova: budget_tokens must be positive", budget_tokens);
    }
  };
  struct TokenState {
    float attention = 0;
  };
  static constexpr terse::Signal signal = terse::Signal::column_sum;
  static constexpr bool scatters = true;

  /// What the token received from the newest step; earlier steps are forgotten.
  static void observe(TokenState& state, float column_sum) { state.attention = column_sum; }

  static void select(terse::TokenList<TokenState>& tokens, const Params& params,
                     const terse::SelectContext& context) {
    const int keep = params.budget_tokens - context.incoming_tokens;
    terse::keep_highest(tokens, 0, tokens.size(), keep,
                        [&](int i) { return tokens.state(i).attention; });
  }
};
// [evictor]

int main() {
  // [check]
  const Tova::Params rejected[] = {{.budget_tokens = 0}};
  const terse::testing::Report report =
      terse::testing::check_evictor<Tova>({.budget_tokens = 64}, rejected);
  if (!report.ok()) {
    std::fprintf(stderr, "Tova: %s\n", report.failure.c_str());
    return 1;
  }
  // [check]
  std::printf("%d checks passed\n", report.checks);

  // [use]
  using Policy = terse::Compose<terse::Int4Rotated, Tova>;
  using Cache = terse::KVCache<terse::PagedLayout<terse::HeadPaging::per_head>, Policy>;
  // [use]
  constexpr int query_heads = 4, kv_heads = 2, head_dim = 64, tokens = 640;
  const terse::CacheConfig config{.num_query_heads = query_heads,
                                  .num_kv_heads = kv_heads,
                                  .head_dim = head_dim,
                                  .max_tokens = tokens};
  const Cache::Configs policy{{.eviction = {.budget_tokens = 100}}};
  const terse::MemoryPlan plan = must(Cache::plan(config, policy));
  Memory pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  Cache cache = must(Cache::create(config, {pages, tails, state}, policy));
  const terse::SequenceId sequence = must(cache.create_sequence());
  const terse::StepPart step[] = {{sequence, 1}};

  std::vector<float> output(query_heads * head_dim);
  for (int token = 0; token < tokens; ++token) {
    const auto keys = random_vectors(kv_heads, head_dim);
    const auto values = random_vectors(kv_heads, head_dim);
    const auto queries = random_vectors(query_heads, head_dim);
    // [step]
    must(cache.begin_step(step));
    must(cache.append(0, {rows(keys, kv_heads, head_dim), rows(values, kv_heads, head_dim)}));
    std::vector<float> column_sums(cache.column_sum_floats(0));
    Memory workspace(terse::cpu::attend_workspace_bytes(cache.layer(0), step));
    must(terse::cpu::attend(
        cache.layer(0), {step, rows(queries, query_heads, head_dim)},
        {.output = rows(output, query_heads, head_dim), .column_sums = column_sums.data()},
        workspace));
    must(cache.commit_step());
    must(cache.observe(0, step, column_sums));
    must(cache.evict(sequence));
    // [step]
  }

  const terse::MemoryUsage before = cache.memory_usage();
  must(cache.compact(sequence));
  const terse::MemoryUsage after = cache.memory_usage();
  std::printf("%d tokens, %lld of %lld kept; pages held: %lld, after compact %lld\n", tokens,
              static_cast<long long>(after.live_tokens / kv_heads),
              static_cast<long long>(after.stored_tokens / kv_heads),
              static_cast<long long>(before.pages_held), static_cast<long long>(after.pages_held));
  return after.live_tokens == 100 * kv_heads && after.pages_held <= before.pages_held ? 0 : 1;
}
