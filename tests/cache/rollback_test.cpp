/// Rejected tokens, truncation and forks leave no trace.
#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Kivi2Sinks = Compose<Kivi2>;
using PerHead = PagedLayout<HeadPaging::per_head>;

CacheConfig config() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 3,
          .max_tokens = 400,
          .max_step_tokens = 80,
          .rope = {.rotary_dim = 64}};
}

constexpr std::uint64_t rejected_text = 99;

/// Decodes to 280 with a rejected draft at every step, beside a run that never saw one.
template <Layout L, class P>
void check_speculation(const PolicyConfig<PolicyOf<P>>& policy = {}) {
  Driver<L, P> plain(config(), policy), speculative(config(), policy);
  const SequenceId a = plain.create(), b = speculative.create();
  Random random(7);
  while (plain.length(a) < 280) {
    const int accepted = random.below(9), drafted = accepted + 1 + random.below(60);
    if (accepted > 0) REQUIRE(plain.step(a, accepted).ok());
    // The accepted tokens come first, the rejected ones after them have another text.
    const StepPart part{b, drafted};
    const std::int64_t position = speculative.length(b);
    REQUIRE(speculative.cache.begin_step({&part, 1}).ok());
    for (int layer = 0; layer < 2; ++layer) {
      TokenRows rows = token_rows(plain.shape(), 1, layer, position, accepted);
      const TokenRows wrong =
          token_rows(plain.shape(), rejected_text, layer, position + accepted, drafted - accepted);
      rows.keys.insert(rows.keys.end(), wrong.keys.begin(), wrong.keys.end());
      rows.values.insert(rows.values.end(), wrong.values.begin(), wrong.values.end());
      rows.gate_logits.resize(static_cast<std::size_t>(drafted * 2));
      REQUIRE(speculative.cache.append(layer, append_inputs(plain.shape(), rows)).ok());
    }
    if (accepted == 0 && random.below(2) == 0) {
      REQUIRE(speculative.cache.abandon_step().ok());
    } else {
      REQUIRE(speculative.cache.commit_step({&accepted, 1}).ok());
    }
    REQUIRE(plain.length(a) == speculative.length(b));
    CHECK(plain.cache.memory_usage().pages_held == speculative.cache.memory_usage().pages_held);
    if (plain.length(a) > 0) {
      CHECK(same_bits(plain.attend(a), speculative.attend(b)));
      CHECK(same_bits(plain.attend(a, 1, Path::vectorised, {}, true, 1),
                      speculative.attend(b, 1, Path::vectorised, {}, true, 1)));
    }
  }
}

}  // namespace

TEST_CASE("rejected tokens leave no trace in any later bit", "[cache][rollback]") {
  check_speculation<PagedLayout<>, Identity>();
  check_speculation<ContiguousLayout, Int8>();
  check_speculation<PerHead, Int4Rotated>({.tail = TailSpec{.sink_tokens = 4}});
  check_speculation<PagedLayout<>, Kivi2Sinks>({.tail = TailSpec{1, 128, 4}});
  check_speculation<ContiguousLayout, Kivi4>({.tail = TailSpec{.min_tokens = 30}});
}

TEMPLATE_TEST_CASE("truncation inside the exact part is as if never appended", "[cache][rollback]",
                   Int4Rotated, Kivi2) {
  Driver<PagedLayout<>, TestType> plain(config()), cut(config());
  const SequenceId a = plain.create(), b = cut.create();
  REQUIRE(plain.fill(a, 150, 30).ok());
  REQUIRE(cut.fill(b, 140, 10).ok());
  REQUIRE(cut.step(b, 50, rejected_text).ok());
  REQUIRE(cut.cache.truncate(b, 140).ok());
  REQUIRE(cut.fill(b, 150, 3).ok());
  CHECK(same_bits(plain.attend(a), cut.attend(b)));
  REQUIRE(plain.fill(a, 300, 30).ok());
  REQUIRE(cut.fill(b, 300, 7).ok());
  CHECK(same_bits(plain.attend(a), cut.attend(b)));
}

TEMPLATE_TEST_CASE("a deep truncation keeps the older tokens and goes on", "[cache][rollback]",
                   Identity, Int8, Kivi4) {
  Driver<PagedLayout<>, TestType> d(config());
  const SequenceId s = d.create();
  for (const int length : {100, 64, 63, 1, 0}) {
    REQUIRE(d.cache.truncate(s, std::min<std::int64_t>(length, d.length(s))).ok());
    REQUIRE(d.fill(s, 300, 20).ok());
    REQUIRE(d.cache.truncate(s, length).ok());
    CHECK(d.cache.memory_usage().live_tokens == length * 4);
    REQUIRE(d.fill(s, length + 90, 13).ok());
    const Attended fast = d.attend(s, 3), slow = d.attend(s, 3, Path::oracle);
    CHECK(relative_l2(fast.output, slow.output) < 1e-5);
    CHECK(d.cache.memory_usage().live_tokens == (length + 90) * 4);
  }
  REQUIRE(d.cache.release(s).ok());
  CHECK(d.cache.memory_usage().pages_held == 0);
}

TEST_CASE("truncation into blocks that eviction released goes on in a new block",
          "[cache][rollback]") {
  using P = Compose<Kivi4, SinkWindow>;
  Driver<PagedLayout<>, P> d(config(), {.eviction = {.sink_tokens = 0, .window_tokens = 5},
                                        .tail = TailSpec{.min_tokens = 70}});
  const SequenceId s = d.create();
  for (const int length : {150, 128, 120, 64}) {
    INFO("truncated to " << length);
    REQUIRE(d.cache.truncate(s, 0).ok());
    REQUIRE(d.step(s, 80).ok());
    REQUIRE(d.step(s, 80).ok());
    REQUIRE(d.step(s, 60).ok());
    REQUIRE(d.cache.evict(s).ok());
    REQUIRE(d.cache.truncate(s, length).ok());
    REQUIRE(d.fill(s, length + 150, 40).ok());
    const Attended fast = d.attend(s, 2), slow = d.attend(s, 2, Path::oracle);
    REQUIRE(fast.status.ok());
    CHECK(relative_l2(fast.output, slow.output) < 1e-5);
  }
}

TEMPLATE_TEST_CASE("forks do not see each other", "[cache][fork]", Int4Rotated, Kivi2,
                   (Compose<Int8, SinkWindow>), (Compose<Kivi4, SinkWindow>)) {
  using P = PolicyOf<TestType>;
  PolicyConfig<P> policy;
  if constexpr (requires { policy.eviction.window_tokens; }) {
    policy.eviction = {.sink_tokens = 2, .window_tokens = 40};
  }
  for (const int length : {1, 63, 64, 100, 128, 200}) {
    INFO("forked at " << length);
    Driver<PagedLayout<>, P> d(config(), policy);
    const SequenceId a = d.create();
    REQUIRE(d.fill(a, length, 50).ok());
    const MemoryUsage before = d.cache.memory_usage();
    const auto forked = d.cache.fork(a);
    REQUIRE(forked.ok());
    const SequenceId b = *forked;
    // Only an open block is copied.
    const bool has_open = d.shape().open && length % 64 != 0;
    CHECK(d.cache.memory_usage().pages_held == before.pages_held + (has_open ? 2 : 0));
    const Attended a_was = d.attend(a), b_was = d.attend(b);
    CHECK(same_bits(a_was, b_was));
    REQUIRE(d.fill(b, length + 150, 30, rejected_text).ok());
    REQUIRE(d.cache.evict(b).ok());
    CHECK(same_bits(d.attend(a), a_was));
    const Attended b_is = d.attend(b);
    REQUIRE(d.fill(a, length + 90, 30).ok());
    REQUIRE(d.cache.evict(a).ok());
    CHECK(same_bits(d.attend(b), b_is));
    REQUIRE(d.cache.release(a).ok());
    CHECK(same_bits(d.attend(b), b_is));
    REQUIRE(d.cache.release(b).ok());
    CHECK(d.cache.memory_usage().pages_held == 0);
  }
}

TEMPLATE_TEST_CASE("a cache attached to a byte copy is the same cache", "[cache][attach]", Int8,
                   Kivi2, (Compose<Int4Rotated, H2O>)) {
  using P = PolicyOf<TestType>;
  PolicyConfig<P> policy;
  if constexpr (requires { policy.eviction.heavy_tokens; }) {
    policy.eviction = {.heavy_tokens = 60, .recent_tokens = 30};
  }
  Driver<PagedLayout<>, P> d(config(), policy);
  const SequenceId a = d.create(), b = d.create();
  REQUIRE(d.fill(a, 170, 60).ok());
  REQUIRE(d.fill(b, 90, 60).ok());
  REQUIRE(d.cache.evict(a).ok());
  Driver<PagedLayout<>, P> copy(config(), policy);
  copy.buffers = d.buffers.copy();
  auto attached =
      Driver<PagedLayout<>, P>::Cache::attach(copy.config, copy.buffers.view(), copy.policies);
  REQUIRE(attached.ok());
  const StepPart part{a, 1};
  const auto queries = query_rows(d.shape(), 5, 169, 1);
  CHECK(same_bits(run_attend(attached->layer(1), {&part, 1}, queries, Path::vectorised, {}, true),
                  run_attend(d.cache.layer(1), {&part, 1}, queries, Path::vectorised, {}, true)));
  // The same calls leave the same bytes in both.
  const auto go_on = [&](auto& cache) {
    for (int i = 0; i < 60; ++i) {
      const StepPart parts[] = {{a, 1}, {b, 2}};
      REQUIRE(cache.begin_step(parts).ok());
      for (int layer = 0; layer < 2; ++layer) {
        const TokenRows rows = token_rows(d.shape(), 3, layer, 200 + 3 * i, 3);
        REQUIRE(cache.append(layer, append_inputs(d.shape(), rows)).ok());
      }
      REQUIRE(cache.commit_step().ok());
    }
    REQUIRE(cache.evict(b).ok());
    REQUIRE(cache.compact(a, true).ok());
    REQUIRE(cache.truncate(b, 100).ok());
    REQUIRE(cache.fork(b).ok());
  };
  go_on(d.cache);
  go_on(*attached);
  CHECK(d.buffers.pages == copy.buffers.pages);
  CHECK(d.buffers.tails == copy.buffers.tails);
  const auto x = d.cache.memory_usage(), y = attached->memory_usage();
  CHECK(x.pages_held == y.pages_held);
  CHECK(x.live_tokens == y.live_tokens);
  const auto more = query_rows(d.shape(), 5, 0, 1);
  CHECK(same_bits(run_attend(attached->layer(0), {&part, 1}, more, Path::vectorised),
                  run_attend(d.cache.layer(0), {&part, 1}, more, Path::vectorised)));
}

TEST_CASE("of the sequences that share an open block the last one keeps it", "[cache][fork]") {
  CacheConfig c = config();
  c.num_layers = 1;
  Driver<PagedLayout<>, Int8> d(c, {.num_pages = 4});
  const SequenceId a = d.create();
  REQUIRE(d.fill(a, 128, 64).ok());
  const auto b = d.cache.fork(a);
  REQUIRE(b.ok());
  REQUIRE(d.cache.truncate(a, 100).ok());
  REQUIRE(d.cache.truncate(*b, 100).ok());
  // Two sealed pages are held, the second one open again for both: one copy, two pages are free.
  REQUIRE(d.cache.memory_usage().pages_free == 2);
  const auto c2 = d.cache.fork(*b);  // copies its open block
  REQUIRE(c2.ok());
  REQUIRE(d.cache.memory_usage().pages_free == 1);
  const StepPart parts[] = {{a, 1}, {*b, 1}};
  REQUIRE(d.cache.begin_step(parts).ok());
  CHECK(d.cache.memory_usage().pages_free == 0);
  REQUIRE(d.cache.abandon_step().ok());
}
