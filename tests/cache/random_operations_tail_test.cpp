/// Random operations on policies with a tail: what is sealed, un-sealed and read exactly.
#include "support/catch.hpp"
#include "support/random_operations.hpp"

using namespace terse;
using namespace terse::tests;

using PerHead = PagedLayout<HeadPaging::per_head>;
using Kivi2R64 = Kivi<KiviSpec{.bits = 2, .group_channels = 16, .residual_tokens = 64}>;
using Kivi4R64 = Kivi<KiviSpec{.bits = 4, .group_channels = 16, .residual_tokens = 64}>;
using Kivi4R128 = Kivi<KiviSpec{.bits = 4, .group_channels = 16, .residual_tokens = 128}>;

TEST_CASE("KIVI-2 with sinks, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Kivi2R64> run(
      {.operations = 8000, .seed = 21},
      {.tail = TailSpec{.min_tokens = 1, .granule_tokens = 64, .sink_tokens = 4}});
  REQUIRE(run.go() == "");
}

TEST_CASE("KIVI-4 in steps of 128, contiguous", "[random_operations]") {
  RandomOperations<ContiguousLayout, Kivi4R128> run({.operations = 8000, .seed = 22}, {});
  REQUIRE(run.go() == "");
}

TEST_CASE("KIVI-4 with at least 70 exact tokens, pages per head", "[random_operations]") {
  RandomOperations<PerHead, Kivi4R128> run(
      {.operations = 8000, .seed = 23}, {.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64}});
  REQUIRE(run.go() == "");
}

TEST_CASE("rotated int4 with a tail, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Int4Rotated> run(
      {.operations = 8000, .seed = 24},
      {.tail = TailSpec{.min_tokens = 20, .granule_tokens = 64, .sink_tokens = 16}});
  REQUIRE(run.go() == "");
}

TEST_CASE("rotated int4 with a tail of 8 bits, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Compose<Int4Rotated, TailCodec<Int8>>> run(
      {.operations = 8000, .seed = 29},
      {.tail = TailSpec{.min_tokens = 20, .granule_tokens = 64, .sink_tokens = 16}});
  REQUIRE(run.go() == "");
}

TEST_CASE("KIVI-4 with a tail of 8 bits, contiguous", "[random_operations]") {
  RandomOperations<ContiguousLayout, Compose<Kivi4R128, TailCodec<Int8>>> run(
      {.operations = 8000, .seed = 30}, {});
  REQUIRE(run.go() == "");
}

TEST_CASE("KIVI-4 with codes that wait in the tail, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Kivi4R128> run(
      {.operations = 8000, .seed = 31},
      {.tail = TailSpec{.min_tokens = 150, .granule_tokens = 64}, .encodes_ahead = true});
  REQUIRE(run.go() == "");
}

TEST_CASE("int8 keys and KIVI values, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, KeyValue<Int8, Kivi2R64::value_codec>> run(
      {.operations = 8000, .seed = 25}, {.tail = TailSpec{.min_tokens = 1}});
  REQUIRE(run.go() == "");
}

TEST_CASE("blocks cut behind a short tail, KIVI-4, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Kivi4R64> run({.max_tokens = 512,
                                                 .max_step_tokens = 40,
                                                 .operations = 3000,
                                                 .seed = 26,
                                                 .long_steps = true,
                                                 .deep_truncations = true},
                                                {});
  REQUIRE(run.go() == "");
  if (operation_divisor == 1) CHECK(run.moved_tokens() > 1000);
}

TEST_CASE("blocks cut behind a short tail, rotated int4, pages per head", "[random_operations]") {
  RandomOperations<PerHead, Int4Rotated> run(
      {.max_tokens = 512,
       .max_step_tokens = 40,
       .operations = 3000,
       .seed = 27,
       .long_steps = true,
       .deep_truncations = true},
      {.tail = TailSpec{.min_tokens = 1, .granule_tokens = 64, .sink_tokens = 2}});
  REQUIRE(run.go() == "");
  if (operation_divisor == 1) CHECK(run.moved_tokens() > 1000);
}

TEST_CASE("blocks cut behind a short tail, int8 with a window, contiguous", "[random_operations]") {
  RandomOperations<ContiguousLayout, Compose<Int8, SinkWindow>> run(
      {.max_tokens = 512,
       .max_step_tokens = 40,
       .operations = 3000,
       .seed = 28,
       .long_steps = true,
       .deep_truncations = true},
      {.eviction = {.sink_tokens = 3, .window_tokens = 150}, .tail = TailSpec{.min_tokens = 1}});
  REQUIRE(run.go() == "");
  if (operation_divisor == 1) CHECK(run.moved_tokens() > 1000);
}
