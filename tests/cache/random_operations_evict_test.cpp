/// Random operations with eviction and compaction.
#include "support/catch.hpp"
#include "support/random_operations.hpp"

using namespace terse;
using namespace terse::tests;

using PerHead = PagedLayout<HeadPaging::per_head>;
using Kivi2R64 = Kivi<KiviSpec{.bits = 2, .group_channels = 16, .residual_tokens = 64}>;
using Kivi4R128 = Kivi<KiviSpec{.bits = 4, .group_channels = 16, .residual_tokens = 128}>;

TEST_CASE("H2O on rotated int4, pages per head", "[random_operations]") {
  using P = Compose<Int4Rotated, H2O>;
  RandomOperations<PerHead, P> run(
      {.operations = 6000, .seed = 31},
      {.eviction = {.heavy_tokens = 30, .recent_tokens = 30, .sink_tokens = 2}});
  REQUIRE(run.go() == "");
}

TEST_CASE("H2O on KIVI-4, paged", "[random_operations]") {
  using P = Compose<Kivi4R128, H2O>;
  RandomOperations<PagedLayout<>, P> run(
      {.operations = 6000, .seed = 32},
      {.eviction = {.heavy_tokens = 40,
                    .recent_tokens = 20,
                    .normalise = H2O::Normalise::per_query},
       .tail = TailSpec{.min_tokens = 80, .granule_tokens = 128, .sink_tokens = 3}});
  REQUIRE(run.go() == "");
}

TEST_CASE("H2O on int8, contiguous", "[random_operations]") {
  using P = Compose<Int8, H2O>;
  RandomOperations<ContiguousLayout, P> run(
      {.operations = 6000, .seed = 33}, {.eviction = {.heavy_tokens = 50, .recent_tokens = 10}});
  REQUIRE(run.go() == "");
}

TEST_CASE("StreamingLLM on KIVI-2, paged", "[random_operations]") {
  using P = Compose<Kivi2R64, StreamingLLM>;
  RandomOperations<PagedLayout<>, P> run({.operations = 6000, .seed = 34},
                                         {.eviction = {.sink_tokens = 4, .window_tokens = 90}});
  REQUIRE(run.go() == "");
}

TEST_CASE("StreamingLLM on rotated int4 with exact sinks, contiguous", "[random_operations]") {
  using P = Compose<Int4Rotated, StreamingLLM>;
  RandomOperations<ContiguousLayout, P> run(
      {.operations = 6000, .seed = 35},
      {.eviction = {.sink_tokens = 3, .window_tokens = 50}, .tail = TailSpec{.sink_tokens = 5}});
  REQUIRE(run.go() == "");
}

TEST_CASE("window without re-indexing on identity, pages per head", "[random_operations]") {
  using P = Compose<Identity, SinkWindow>;
  RandomOperations<PerHead, P> run({.operations = 6000, .seed = 36},
                                   {.eviction = {.sink_tokens = 0, .window_tokens = 70}});
  REQUIRE(run.go() == "");
}

TEST_CASE("short window on KIVI-4 in long steps, paged", "[random_operations]") {
  using P = Compose<Kivi4R128, SinkWindow>;
  RandomOperations<PagedLayout<>, P> run(
      {.max_tokens = 512,
       .max_step_tokens = 200,
       .operations = 6000,
       .seed = 38,
       .long_steps = true},
      {.eviction = {.sink_tokens = 0, .window_tokens = 10},
       .tail = TailSpec{.min_tokens = 70, .granule_tokens = 64}});
  REQUIRE(run.go() == "");
}

TEST_CASE("Attention-Gate on int8, pages per head", "[random_operations]") {
  using P = Compose<Int8, AttentionGate>;
  RandomOperations<PerHead, P> run(
      {.operations = 6000, .seed = 37},
      {.eviction = {.threshold = 0.6f, .protected_tokens = 10, .sink_tokens = 1}});
  REQUIRE(run.go() == "");
}
