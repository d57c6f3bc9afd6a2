/// Truncation into sealed blocks: what goes on in them, what a shortened block costs, and how
/// compact joins such blocks.
#include <string>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using PerHead = PagedLayout<HeadPaging::per_head>;
using Int8Tail = Compose<Int8, Tail<TailSpec{.min_tokens = 8}>>;

CacheConfig config() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 16,
          .max_sequences = 3,
          .max_tokens = 400,
          .max_step_tokens = 40};
}

template <class D>
int entries(const D& d, SequenceId s) {
  return d.cache.layer(0).entry_count(s.index, 0);
}

int blocks_for(std::int64_t tokens) {
  return static_cast<int>(ceil_div(tokens, std::int64_t{block_tokens}));
}

/// 1000 rounds of appending 40 tokens, in steps of `chunk`, and taking 30 back.
template <Layout L, class P>
void check_rounds(int chunk) {
  Driver<L, P> d(config()), plain(config());
  const SequenceId s = d.create(), never_cut = plain.create();
  Random random(3);
  for (int round = 0; round < 1000; ++round) {
    INFO("round " << round << " at " << d.length(s) << " tokens");
    REQUIRE(d.fill(s, d.length(s) + 40, chunk).ok());
    REQUIRE(d.cache.truncate(s, d.length(s) - 30).ok());
    if (d.length(s) > 360) REQUIRE(d.cache.truncate(s, random.below(300)).ok());
    REQUIRE(entries(d, s) == blocks_for(d.length(s)));
  }
  REQUIRE(d.fill(s, 400, chunk).ok());
  REQUIRE(plain.fill(never_cut, 400, 40).ok());
  CHECK(same_bits(d.attend(s), plain.attend(never_cut)));
}

}  // namespace

TEST_CASE("open policies take tokens back for ever without losing room", "[cache][truncate]") {
  check_rounds<PagedLayout<>, Int8>(40);
  check_rounds<ContiguousLayout, Identity>(8);
  check_rounds<PerHead, Int4Rotated>(1);
}

TEST_CASE("an open block that a fork shares is copied before it is written", "[cache][truncate]") {
  Driver<PagedLayout<>, Int8> d(config(), {.num_pages = 8});
  const SequenceId a = d.create();
  REQUIRE(d.fill(a, 128, 40).ok());
  const auto b = d.cache.fork(a);
  REQUIRE(b.ok());
  const Attended b_was = d.attend(*b);
  REQUIRE(d.cache.truncate(a, 100).ok());
  CHECK(d.cache.memory_usage().pages_held == 4);  // 2 blocks in 2 slots, still shared
  const Attended a_was = d.attend(a);
  REQUIRE(d.begin(a, 3, 77).ok());
  CHECK(d.cache.memory_usage().pages_held == 6);
  REQUIRE(d.cache.abandon_step().ok());
  CHECK(same_bits(d.attend(a), a_was));
  REQUIRE(d.step(a, 28, 77).ok());
  CHECK(entries(d, a) == 2);
  CHECK(same_bits(d.attend(*b), b_was));

  // The other way round, with a pool that has room for one copy only.
  REQUIRE(d.cache.truncate(*b, 90).ok());
  CHECK(d.step(*b, 1, 78).ok());  // its block is nobody else's by now
  const auto c = d.cache.fork(*b);
  REQUIRE(c.ok());
  CHECK(d.cache.memory_usage().pages_free == 0);
  REQUIRE(d.cache.truncate(*c, 10).ok());
  CHECK(d.cache.memory_usage().pages_free == 2);
  REQUIRE(d.step(a, 1).ok());
  const OwnedBuffers before = d.buffers.copy();
  const StepPart part{*c, 1};
  const Status refused = d.cache.begin_step({&part, 1});
  CHECK(refused.code == StatusCode::no_free_pages);
  CHECK(refused.detail == 2);
  CHECK(before == d.buffers);
}

TEMPLATE_TEST_CASE("exact copies outlast steps while the tail has room", "[cache][truncate]", Kivi2,
                   Int8Tail) {
  Driver<PagedLayout<>, TestType> plain(config()), cut(config());
  const SequenceId a = plain.create(), b = cut.create();
  REQUIRE(plain.fill(a, 121, 7).ok());
  REQUIRE(cut.fill(b, 121, 1).ok());
  REQUIRE(cut.fill(b, 150, 1, 99).ok());  // seals two blocks, of tokens that are then taken back
  REQUIRE(cut.cache.truncate(b, 121).ok());
  CHECK(plain.cache.memory_usage().pages_held == cut.cache.memory_usage().pages_held);
  CHECK(same_bits(plain.attend(a), cut.attend(b)));
  REQUIRE(plain.fill(a, 300, 30).ok());
  REQUIRE(cut.fill(b, 300, 9).ok());
  CHECK(entries(cut, b) == entries(plain, a));
  CHECK(same_bits(plain.attend(a), cut.attend(b)));
}

TEMPLATE_TEST_CASE("blocks cut behind the tail count whole until compact joins them",
                   "[cache][truncate]", Kivi2, Int8Tail,
                   (KeyValue<Int8, typename Kivi2::value_codec>)) {
  constexpr bool is_exact = !std::is_same_v<TestType, Kivi2>;  // per-channel keys
  Driver<PagedLayout<>, TestType> d(config(), {.tail = TailSpec{.min_tokens = 1}});
  const SequenceId s = d.create();
  int refusals = 0;
  for (int round = 0; round < 1000; ++round) {
    INFO("round " << round << " at " << d.length(s) << " tokens");
    // Seals far enough beyond the end that the exact copies are gone.
    const std::int64_t keep = d.length(s) + 1;
    Status status = d.fill(s, keep + 130, 40);
    if (!status.ok()) {
      ++refusals;
      REQUIRE(status.code == StatusCode::too_many_tokens);
      REQUIRE(std::string(status.text).find("compact joins") != std::string::npos);
      REQUIRE(d.cache.truncate(s, keep - 1).ok());
      const Attended before = d.attend(s), exact_before = d.attend(s, 1, Path::oracle);
      const int entries_before = entries(d, s);
      const CompactPlan plan = *d.cache.plan_compact(s);
      CHECK(plan.tokens_moved > 0);
      CHECK((plan.tokens_reencoded == 0) == is_exact);
      const std::int64_t held = d.cache.memory_usage().pages_held;
      if (!is_exact) CHECK(d.cache.compact(s).status().code == StatusCode::would_be_lossy);
      REQUIRE(d.cache.compact(s, !is_exact).ok());
      CHECK(d.cache.memory_usage().pages_held == held - plan.pages_returned);
      CHECK(entries(d, s) < entries_before);
      CHECK(entries(d, s) <= blocks_for(d.length(s)) + 1);
      CHECK(d.cache.memory_usage().live_tokens == d.length(s) * 4);
      const Attended after = d.attend(s);
      CHECK(relative_l2(after.output, d.attend(s, 1, Path::oracle).output) < 1e-5);
      CHECK(relative_l2(after.output, exact_before.output) < (is_exact ? 1e-5 : 0.5));
      status = d.fill(s, keep + 130, 40);
    }
    REQUIRE(status.ok());
    REQUIRE(d.cache.truncate(s, d.length(s) > 260 ? 3 : keep).ok());
  }
  CHECK(refusals > 10);
}

TEST_CASE("joining leaves forks alone and copies only what it changes", "[cache][truncate]") {
  Driver<PagedLayout<>, Int8Tail> d(config());
  const SequenceId a = d.create();
  REQUIRE(d.fill(a, 330, 40).ok());
  REQUIRE(d.cache.truncate(a, 84).ok());  // blocks of 64 and 20 tokens
  REQUIRE(d.fill(a, 250, 40).ok());
  REQUIRE(d.cache.truncate(a, 104).ok());  // and one of 20
  REQUIRE(entries(d, a) == 3);
  const auto b = d.cache.fork(a);
  REQUIRE(b.ok());
  const Attended was = d.attend(a);
  CHECK(d.cache.memory_usage().pages_held == 6);
  const CompactPlan plan = *d.cache.plan_compact(a);
  CHECK(plan.tokens_moved == 40 * 4);  // the first block stays as it is
  CHECK(plan.pages_needed == 2);
  CHECK(plan.pages_returned == -2);
  REQUIRE(d.cache.compact(a).ok());
  CHECK(entries(d, a) == 2);
  CHECK(d.cache.memory_usage().pages_held == 8);
  CHECK(same_bits(d.attend(*b), was));
  CHECK(relative_l2(d.attend(a).output, was.output) < 1e-5);
  REQUIRE(d.cache.release(*b).ok());
  CHECK(d.cache.memory_usage().pages_held == 4);
}

TEST_CASE("a packed block keeps its page when one unit has lost all its tokens",
          "[cache][truncate]") {
  using P = Compose<Int8, Tail<TailSpec{.min_tokens = 8}>, H2O>;
  const PolicyConfig<P> policy{.eviction = {.heavy_tokens = 20, .recent_tokens = 1}};
  Driver<PagedLayout<>, P> shared(config(), policy);
  Driver<PerHead, P> apart(config(), policy);  // a row of its own for each unit
  const auto prepare = [](auto& d) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 210, 40).ok());
    const StepPart part{s, 1};
    for (int layer = 0; layer < 2; ++layer) {
      std::vector<float> sums(d.cache.column_sum_floats(layer), 0.0f);
      for (std::size_t p = 0; p < 20; ++p) {  // unit 0 keeps 100 to 119, unit 1 keeps 0 to 19
        sums[100 + p] = 1.0f;
        sums[static_cast<std::size_t>(d.shape().entries) * block_tokens + p] = 1.0f;
      }
      REQUIRE(d.cache.observe(layer, {&part, 1}, sums).ok());
    }
    REQUIRE(d.cache.evict(s).ok());
    REQUIRE(d.cache.compact(s).ok());
    REQUIRE(d.cache.truncate(s, 90).ok());
    REQUIRE(d.step(s, 3).ok());
    return s;
  };
  const SequenceId s = prepare(shared);
  REQUIRE(prepare(apart) == s);
  for (const int length : {93, 130, 250}) {
    REQUIRE(shared.fill(s, length, 30).ok());
    REQUIRE(apart.fill(s, length, 30).ok());
    const auto r = shared.cache.layer(0);
    CHECK(r.page(s.index, 0, 0) != no_page);
    CHECK(shared.cache.memory_usage().live_tokens == (2 * (length - 90) + 20) * 2);
    CHECK(relative_l2(shared.attend(s).output, apart.attend(s).output) < 1e-6);
  }
}
