/// Eviction returns pages, compaction returns more, and neither changes what survives.
#include <string>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/plain_evictors.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using PerHead = PagedLayout<HeadPaging::per_head>;

struct RandomlyEvicted {
  using evictor = RandomEvictor;
};

CacheConfig config() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 700,
          .max_step_tokens = 64,
          .rope = {.rotary_dim = 64}};
}

/// Feeds H2O the attention of the newest row of every layer.
template <class D>
void observe(D& d, SequenceId s) {
  const StepPart part{s, 1};
  for (int layer = 0; layer < 2; ++layer) {
    const Attended seen = d.attend(s, 1, Path::vectorised, {}, true, layer);
    REQUIRE(d.cache.observe(layer, {&part, 1}, seen.column_sums).ok());
  }
}

}  // namespace

TEMPLATE_TEST_CASE("a window returns every page behind it", "[cache][evict]", PagedLayout<>,
                   PerHead) {
  using P = Compose<Int8, StreamingLLM>;
  Driver<TestType, P> d(config(), {.eviction = {.sink_tokens = 4, .window_tokens = 100}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 640, 64).ok());
  const MemoryUsage before = d.cache.memory_usage();
  const int rows = d.shape().rows;
  CHECK(before.pages_held == 10 * 2 * rows);
  const auto freed = d.cache.evict(s);
  REQUIRE(freed.ok());
  // Blocks 0 (sinks), 8 and 9 (540..639) stay.
  CHECK(*freed == 7 * 2 * rows);
  const MemoryUsage after = d.cache.memory_usage();
  CHECK(after.pages_free == before.pages_free + *freed);
  CHECK(after.page_bytes_held == static_cast<std::size_t>(3 * 2 * rows) * d.shape().page_bytes);
  CHECK(after.live_tokens == 104 * 2 * 2);
  CHECK(after.stored_tokens == 640 * 2 * 2);
  CHECK(*d.cache.evict(s) == 0);
  CHECK(d.length(s) == 640);
}

TEST_CASE("a full pool takes tokens again after eviction, without end", "[cache][evict]") {
  using P = Compose<Kivi2, StreamingLLM>;
  Driver<PagedLayout<>, P> d(
      config(), {.eviction = {.sink_tokens = 4, .window_tokens = 128}, .num_pages = 14});
  const SequenceId s = d.create();
  for (int i = 0; i < 60; ++i) {
    REQUIRE(d.step(s, 50).ok());
    REQUIRE(d.cache.evict(s).ok());
  }
  CHECK(d.length(s) == 3000);
  CHECK(relative_l2(d.attend(s, 5).output, d.attend(s, 5, Path::oracle).output) < 1e-5);
}

TEST_CASE("a shared page stays until its last owner drops it", "[cache][evict]") {
  using P = Compose<Int4Rotated, SinkWindow>;
  Driver<PagedLayout<>, P> d(config(), {.eviction = {.sink_tokens = 0, .window_tokens = 64}});
  const SequenceId a = d.create();
  REQUIRE(d.fill(a, 256, 64).ok());
  const SequenceId b = *d.cache.fork(a);
  CHECK(*d.cache.evict(a) == 0);
  CHECK(*d.cache.evict(b) == 3 * 2);
  CHECK(d.cache.memory_usage().pages_held == 2);
}

TEST_CASE("compaction of per-token codes keeps attention", "[cache][compact]") {
  const auto check = [](auto driver_of) {
    auto d = driver_of();
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 600, 64).ok());
    REQUIRE(d.cache.evict(s).ok());
    const Attended before = d.attend(s, 3);
    const MemoryUsage was = d.cache.memory_usage();
    const auto planned = d.cache.plan_compact(s);
    const auto done = d.cache.compact(s);
    REQUIRE(done.ok());
    CHECK(planned->tokens_reencoded == 0);
    CHECK(done->pages_returned == planned->pages_returned);
    CHECK(done->pages_returned > 0);
    CHECK(d.cache.memory_usage().pages_free == was.pages_free + done->pages_returned);
    CHECK(d.cache.memory_usage().live_tokens == was.live_tokens);
    const Attended after = d.attend(s, 3);
    CHECK(relative_l2(after.output, before.output) < 1e-6);
    CHECK(relative_l2(after.lse_ln, before.lse_ln) < 1e-6);
    CHECK(d.cache.plan_compact(s)->pages_returned == 0);
    REQUIRE(d.fill(s, 680, 20).ok());
    CHECK(relative_l2(d.attend(s, 3).output, d.attend(s, 3, Path::oracle).output) < 1e-5);
  };
  const RandomEvictor::Params most{.drop_percent = 70};
  check([&] {
    return Driver<PerHead, Compose<Int8, RandomlyEvicted>>(config(), {.eviction = most});
  });
  check([&] {
    return Driver<PagedLayout<>, Compose<Int4Rotated, RandomlyEvicted>>(
        config(), {.eviction = most, .tail = TailSpec{.sink_tokens = 16}});
  });
  check([&] {
    return Driver<ContiguousLayout, Compose<Fp8, RandomlyEvicted>>(config(), {.eviction = most});
  });
}

TEST_CASE("compaction of a contiguous cache makes room behind a window", "[cache][compact]") {
  using P = Compose<Int8, StreamingLLM>;
  Driver<ContiguousLayout, P> d(config(), {.eviction = {.sink_tokens = 4, .window_tokens = 64}});
  const SequenceId s = d.create();
  for (int i = 0; i < 40; ++i) {
    REQUIRE(d.step(s, 50).ok());
    REQUIRE(d.cache.evict(s).ok());
    const Attended before = d.attend(s);
    REQUIRE(d.cache.compact(s).ok());
    CHECK(relative_l2(d.attend(s).output, before.output) < 1e-6);
  }
  CHECK(d.length(s) == 2000);
  CHECK(d.cache.memory_usage().pages_held <= 4 * 2);
}

TEST_CASE("tokens that share scales are encoded again only when allowed", "[cache][compact]") {
  using P = Compose<Kivi4, RandomlyEvicted>;
  Driver<PagedLayout<>, P> d(config(), {.eviction = {.drop_percent = 70}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 600, 64).ok());
  REQUIRE(d.cache.evict(s).ok());
  const OwnedBuffers before = d.buffers.copy();
  const auto refused = d.cache.compact(s);
  CHECK(refused.status().code == StatusCode::would_be_lossy);
  CHECK(before == d.buffers);
  const Attended was = d.attend(s);
  const auto done = d.cache.compact(s, true);
  REQUIRE(done.ok());
  CHECK(done->tokens_reencoded == done->tokens_moved);
  CHECK(done->pages_returned > 0);
  const Attended is = d.attend(s);
  CHECK(relative_l2(is.output, was.output) < 0.15);  // a second 4-bit rounding
  CHECK(relative_l2(is.output, d.attend(s, 1, Path::oracle).output) < 1e-5);
}

TEST_CASE("codes along both axes and fitted levels are attended to, evicted and compacted",
          "[cache][compact]") {
  Driver<PagedLayout<>, KVarN4K2V> whole(config());
  const SequenceId first = whole.create();
  REQUIRE(whole.fill(first, 300, 64).ok());
  CHECK(relative_l2(whole.attend(first, 3).output, whole.attend(first, 3, Path::oracle).output) <
        1e-5);

  Driver<PerHead, Compose<KVQuant3, H2O>> d(
      config(), {.eviction = {.heavy_tokens = 100, .recent_tokens = 100}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 600, 64).ok());
  observe(d, s);
  REQUIRE(d.cache.evict(s).ok());
  CHECK(d.cache.layer(0).count_live(s.index, 0, 600) == 200);
  const Attended was = d.attend(s, 3);
  CHECK(relative_l2(was.output, d.attend(s, 3, Path::oracle).output) < 1e-5);
  CHECK(d.cache.compact(s).status().code == StatusCode::would_be_lossy);
  const auto done = d.cache.compact(s, true);
  REQUIRE(done.ok());
  CHECK(done->tokens_reencoded > 0);
  CHECK(done->pages_returned > 0);
  const Attended is = d.attend(s, 3);
  CHECK(relative_l2(is.output, was.output) < 0.3);  // a second rounding to 8 levels
  CHECK(relative_l2(is.output, d.attend(s, 3, Path::oracle).output) < 1e-5);
}

TEST_CASE("signs of a sketch are attended to, evicted and moved exactly", "[cache][compact]") {
  Driver<PerHead, Compose<TurboQuantProd3, H2O>> d(
      config(), {.eviction = {.heavy_tokens = 100, .recent_tokens = 100}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 600, 64).ok());
  observe(d, s);
  REQUIRE(d.cache.evict(s).ok());
  const Attended was = d.attend(s, 3);
  CHECK(relative_l2(was.output, d.attend(s, 3, Path::oracle).output) < 1e-5);
  const auto done = d.cache.compact(s);
  REQUIRE(done.ok());
  CHECK(done->tokens_moved > 0);
  CHECK(done->tokens_reencoded == 0);
  CHECK(relative_l2(d.attend(s, 3).output, was.output) < 1e-6);
}

TEST_CASE("budgets that cover everything change no bit", "[cache][evict]") {
  Driver<PagedLayout<>, Compose<Kivi2>> plain(config());
  Driver<PagedLayout<>, Compose<Kivi2, H2O>> heavy(
      config(), {.eviction = {.heavy_tokens = 500, .recent_tokens = 200}});
  Driver<PagedLayout<>, Compose<Kivi2, StreamingLLM>> window(
      config(), {.eviction = {.sink_tokens = 4, .window_tokens = 400}});
  Driver<PagedLayout<>, Compose<Kivi2, AttentionGate>> gate(
      config(), {.eviction = {.threshold = 1e-6f, .protected_tokens = 1}});
  const SequenceId s = plain.create();
  REQUIRE(heavy.create() == s);
  REQUIRE(window.create() == s);
  REQUIRE(gate.create() == s);
  for (const int length : {50, 64, 200, 333}) {
    for (Status status : {plain.fill(s, length, 40), heavy.fill(s, length, 40),
                          window.fill(s, length, 40), gate.fill(s, length, 40)}) {
      REQUIRE(status.ok());
    }
    observe(heavy, s);
    CHECK(*heavy.cache.evict(s) == 0);
    CHECK(*window.cache.evict(s) == 0);
    CHECK(*gate.cache.evict(s) == 0);
    const Attended full = plain.attend(s, 3);
    CHECK(same_bits(heavy.attend(s, 3), full));
    CHECK(same_bits(gate.attend(s, 3), full));
    CHECK(relative_l2(window.attend(s, 3).output, full.output) < 1e-6);  // sinks are read apart
  }
}

TEST_CASE("dropped and masked tokens give the same attention", "[cache][evict]") {
  // The same choice by an evictor whose blocks return (a window) and one whose masks alone fall.
  Driver<PagedLayout<>, Compose<Int4Rotated, SinkWindow>> dropped(
      config(), {.eviction = {.sink_tokens = 3, .window_tokens = 90}});
  Driver<ContiguousLayout, Compose<Int4Rotated, SinkWindow>> masked(
      config(), {.eviction = {.sink_tokens = 3, .window_tokens = 90}});
  const SequenceId s = dropped.create();
  REQUIRE(masked.create() == s);
  for (const int length : {64, 65, 127, 200, 511, 640}) {
    REQUIRE(dropped.fill(s, length, 64).ok());
    REQUIRE(masked.fill(s, length, 64).ok());
    (void)dropped.cache.evict(s);
    CHECK(*masked.cache.evict(s) == 0);
    CHECK(relative_l2(dropped.attend(s, 2).output, masked.attend(s, 2).output) < 1e-6);
  }
  CHECK(masked.cache.memory_usage().pages_held > dropped.cache.memory_usage().pages_held);
}

TEST_CASE("H2O keeps what was attended to", "[cache][evict]") {
  using P = Compose<Identity, H2O>;
  Driver<PerHead, P> d(config(), {.eviction = {.heavy_tokens = 8, .recent_tokens = 8}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 100, 50).ok());
  const StepPart part{s, 1};
  std::vector<float> sums(d.cache.column_sum_floats(0), 0.01f);
  const auto at = [&](int unit, int position) -> float& {
    return sums[static_cast<std::size_t>((unit * d.shape().entries + position / 64) * 64 +
                                         position % 64)];
  };
  for (int i = 0; i < 8; ++i) at(0, 10 * i) = at(1, 10 * i + 3) = 1.0f;
  for (int layer = 0; layer < 2; ++layer) REQUIRE(d.cache.observe(layer, {&part, 1}, sums).ok());
  REQUIRE(d.cache.evict(s).ok());
  const auto r = d.cache.layer(1);
  for (int u = 0; u < 2; ++u) {
    for (int p = 0; p < 100; ++p) {
      const bool live = r.live_mask(s.index, u, p / 64) >> (p % 64) & 1u;
      const bool heavy = p < 80 && p % 10 == (u == 0 ? 0 : 3);
      CHECK(live == (heavy || p >= 92));
    }
  }
  // Equal scores: the newer tokens survive.
  std::vector<float> none(d.cache.column_sum_floats(0), 0.0f);
  const SequenceId even = d.create();
  REQUIRE(d.fill(even, 40, 40).ok());
  REQUIRE(d.cache.evict(even).ok());
  CHECK(r.live_mask(even.index, 0, 0) == 0xffffull << 24);
}

TEST_CASE("what a step could take back is not observed", "[cache][evict]") {
  Driver<PagedLayout<>, Compose<Int8, H2O>> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.step(s, 3).ok());
  const StepPart part{s, 1};
  const std::vector<float> sums(d.cache.column_sum_floats(0), 1.0f);
  REQUIRE(d.begin(s, 1).ok());
  const OwnedBuffers before = d.buffers.copy();
  const Status refused = d.cache.observe(0, {&part, 1}, sums);
  CHECK(refused.code == StatusCode::wrong_phase);
  CHECK(std::string(refused.text).find("after commit_step") != std::string::npos);
  CHECK(before == d.buffers);
  REQUIRE(d.cache.abandon_step().ok());
  CHECK(d.cache.observe(0, {&part, 1}, sums).ok());
}

TEST_CASE("observe checks its input", "[cache][evict]") {
  Driver<PagedLayout<>, Compose<Int8, H2O>> d(config());
  Driver<PagedLayout<>, Int8> deaf(config());
  const SequenceId s = d.create();
  REQUIRE(deaf.create() == s);
  REQUIRE(d.step(s, 3).ok());
  const StepPart part{s, 1}, stale{{s.index, s.generation + 1}, 1};
  std::vector<float> sums(d.cache.column_sum_floats(0));
  const Span<const float> less(sums.data(), sums.size() - 1);
  CHECK(d.cache.observe(0, {&part, 1}, less).code == StatusCode::buffer_too_small);
  CHECK(d.cache.observe(2, {&part, 1}, sums).code == StatusCode::invalid_argument);
  CHECK(d.cache.observe(0, {&stale, 1}, sums).code == StatusCode::stale_sequence);
  CHECK(deaf.cache.observe(0, {&part, 1}, sums).code == StatusCode::unsupported);
}
