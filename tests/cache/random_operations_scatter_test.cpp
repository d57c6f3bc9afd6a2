/// Random operations with an evictor of the test's own that drops tokens anywhere, the newest too,
/// and with latents.
#include "support/catch.hpp"
#include "support/random_operations.hpp"

using namespace terse;
using namespace terse::tests;

using PerHead = PagedLayout<HeadPaging::per_head>;
using Kivi4R64 = Kivi<KiviSpec{.bits = 4, .group_channels = 16, .residual_tokens = 64}>;

/// Codes share bytes with those of other tokens.
using ThreeBits = AffineGroup<AffineSpec{.bits = 3, .group = 16}>;

struct RandomlyEvicted {
  using evictor = RandomEvictor;
};

TEST_CASE("random eviction on identity, pages per head", "[random_operations]") {
  RandomOperations<PerHead, Compose<Identity, RandomlyEvicted>> run(
      {.operations = 6000, .seed = 41}, {.tail = TailSpec{.sink_tokens = 7}});
  REQUIRE(run.go() == "");
}

TEST_CASE("random eviction on KIVI-4, contiguous", "[random_operations]") {
  RandomOperations<ContiguousLayout, Compose<Kivi4R64, RandomlyEvicted>> run(
      {.operations = 6000, .seed = 42}, {.eviction = {.drop_percent = 60}});
  REQUIRE(run.go() == "");
}

TEST_CASE("random eviction on 3-bit codes, pages per head", "[random_operations]") {
  RandomOperations<PerHead, Compose<ThreeBits, RandomlyEvicted>> run(
      {.operations = 6000, .seed = 47}, {.eviction = {.drop_percent = 60}});
  REQUIRE(run.go() == "");
}

TEST_CASE("random eviction of almost everything on int8, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Compose<Int8, RandomlyEvicted>> run(
      {.operations = 6000, .seed = 43}, {.eviction = {.drop_percent = 95}});
  REQUIRE(run.go() == "");
}

TEST_CASE("latents over joint heads, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, PaluJoint> run({.operations = 5000, .seed = 44}, {});
  REQUIRE(run.go() == "");
}

TEST_CASE("latents in rotated int4 with H2O, pages per head", "[random_operations]") {
  using P = Compose<PaluPerHead, Int4Rotated, H2O>;
  RandomOperations<PerHead, P> run({.operations = 5000, .seed = 45},
                                   {.eviction = {.heavy_tokens = 30, .recent_tokens = 30}});
  REQUIRE(run.go() == "");
}

TEST_CASE("latents of unequal groups in KIVI-4 with StreamingLLM, paged", "[random_operations]") {
  using P = Compose<Palu<PaluSpec{.key_heads_per_group = 1, .value_heads_per_group = 0}>, Kivi4R64,
                    StreamingLLM>;
  RandomOperations<PagedLayout<>, P> run(
      {.operations = 5000, .seed = 46},
      {.eviction = {.sink_tokens = 4, .window_tokens = 80},
       .tail = TailSpec{.min_tokens = 1, .granule_tokens = 64, .sink_tokens = 4}});
  REQUIRE(run.go() == "");
}
