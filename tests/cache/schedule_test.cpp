/// Policy classes per layer, and layers that share a slot.
#include <type_traits>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Two = Schedule<Int8, Compose<Kivi2, SinkWindow>>;
// Layers 0 and 3 read slot 0 of class 0, layer 1 slot 0 of class 1, layer 2 slot 1 of class 0.
constexpr LayerPlace places[] = {{0, 0}, {0, 1}, {1, 0}, {0, 0}};

CacheConfig config() {
  return {.num_layers = 4,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 300,
          .max_step_tokens = 30,
          .layers = places};
}

template <class Cache>
Attended attend_layer(const Cache& cache, int layer, SequenceId s, Path path) {
  Attended result;
  const Status status = cache.visit_layer(layer, [&](const auto& r) {
    const StepPart part{s, 2};
    result = run_attend(r, {&part, 1}, query_rows(r.shape, 5, 0, 2), path);
    return result.status;
  });
  REQUIRE(status.ok());
  return result;
}

}  // namespace

TEST_CASE("each layer has the policy and the slot of its place", "[cache][schedule]") {
  CacheFixture<PagedLayout<>, Two> f(config(),
                                     {{}, {.eviction = {.sink_tokens = 0, .window_tokens = 70}}});
  const MemoryPlan& plan = f.cache.memory_plan();
  REQUIRE(plan.num_classes == 2);
  CHECK(plan.classes[0].shape.slots == 2);
  CHECK(plan.classes[1].shape.slots == 1);
  CHECK(plan.pages_bytes == plan.classes[0].pages_bytes + plan.classes[1].pages_bytes);
  CHECK(plan.classes[0].tails_bytes == 0);
  CHECK(plan.tails_bytes == plan.classes[1].tails_bytes);
  const SequenceId s = *f.cache.create_sequence();
  // The same text in caches of one class each.
  CacheConfig one = config();
  one.num_layers = 1;
  one.layers = {};
  Driver<PagedLayout<>, Int8> first(one), third(one);
  Driver<PagedLayout<>, Compose<Kivi2, SinkWindow>> second(
      one, {.eviction = {.sink_tokens = 0, .window_tokens = 70}});
  REQUIRE(first.create() == s);
  REQUIRE(second.create() == s);
  REQUIRE(third.create() == s);
  for (std::int64_t length = 0; length < 270; length += 30) {
    const StepPart part{s, 30};
    REQUIRE(f.cache.begin_step({&part, 1}).ok());
    const ClassShape& shape = plan.classes[0].shape;
    for (int slot = 0; slot < 3; ++slot) {
      const TokenRows rows = token_rows(shape, static_cast<std::uint64_t>(slot) + 1, 0, length, 30);
      REQUIRE(f.cache.append(slot, append_inputs(shape, rows)).ok());
      if (slot == 0) {
        CHECK(f.cache.append(3, append_inputs(shape, rows)).code == StatusCode::already_appended);
      }
    }
    REQUIRE(f.cache.commit_step().ok());
    REQUIRE(first.step(s, 30, 1).ok());
    REQUIRE(second.step(s, 30, 2).ok());
    REQUIRE(third.step(s, 30, 3).ok());
    REQUIRE(f.cache.evict(s).ok());
    REQUIRE(second.cache.evict(s).ok());
    for (const Path path : {Path::vectorised, Path::oracle}) {
      const Attended shared = attend_layer(f.cache, 0, s, path);
      CHECK(same_bits(shared, attend_layer(f.cache, 3, s, path)));
      CHECK(same_bits(shared, attend_layer(first.cache, 0, s, path)));
      CHECK(same_bits(attend_layer(f.cache, 1, s, path), attend_layer(second.cache, 0, s, path)));
      CHECK(same_bits(attend_layer(f.cache, 2, s, path), attend_layer(third.cache, 0, s, path)));
    }
  }
  const MemoryUsage all = f.cache.memory_usage();
  CHECK(all.pages_held == first.cache.memory_usage().pages_held +
                              second.cache.memory_usage().pages_held +
                              third.cache.memory_usage().pages_held);
  CHECK(all.live_tokens == first.cache.memory_usage().live_tokens +
                               second.cache.memory_usage().live_tokens +
                               third.cache.memory_usage().live_tokens);
  const SequenceId fork = *f.cache.fork(s);
  REQUIRE(f.cache.truncate(fork, 33).ok());
  REQUIRE(f.cache.release(s).ok());
  REQUIRE(f.cache.release(fork).ok());
  CHECK(f.cache.memory_usage().pages_held == 0);
}

TEST_CASE("visit_layer gives the view of the layer's class", "[cache][schedule]") {
  CacheFixture<PagedLayout<>, Two> f(config());
  const auto class_of = [&](int layer) {
    int found = -1;
    const Status status = f.cache.visit_layer(layer, [&](const auto& r) {
      using Codec = typename std::decay_t<decltype(r)>::policy::key_codec;
      found = std::is_same_v<Codec, Int8> ? 0 : 1;
      return Status{};
    });
    CHECK(status.ok());
    return found;
  };
  for (int layer = 0; layer < 4; ++layer) {
    CHECK(class_of(layer) == places[layer].policy_class);
    CHECK(f.cache.place(layer).slot == places[layer].slot);
  }
  const auto nothing = [](const auto&) { return Status{}; };
  CHECK(f.cache.visit_layer(4, nothing).code == StatusCode::invalid_argument);
  CHECK(f.cache.visit_layer(-1, nothing).code == StatusCode::invalid_argument);
  const auto fails = [](const auto&) { return error(StatusCode::unsupported, "no"); };
  CHECK(f.cache.visit_layer(0, fails).code == StatusCode::unsupported);
}

TEST_CASE("one class without pages stops the step for all", "[cache][schedule]") {
  CacheFixture<PagedLayout<>, Two> f(config(), {{}, {.num_pages = 1}});
  const SequenceId s = *f.cache.create_sequence();
  const ClassShape& shape = f.cache.memory_plan().classes[0].shape;
  std::int64_t length = 0;
  Status status;
  while (true) {
    const StepPart part{s, 30};
    const OwnedBuffers before = f.buffers.copy();
    status = f.cache.begin_step({&part, 1});
    if (!status.ok()) {
      CHECK(before == f.buffers);
      break;
    }
    const TokenRows rows = token_rows(shape, 1, 0, length, 30);
    for (int layer = 0; layer < 3; ++layer) {
      REQUIRE(f.cache.append(layer, append_inputs(shape, rows)).ok());
    }
    REQUIRE(f.cache.commit_step().ok());
    length += 30;
  }
  CHECK(status.code == StatusCode::no_free_pages);
  CHECK(length == 120);  // 128 tokens seal two blocks at once
}
