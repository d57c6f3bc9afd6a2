/// Random operations on codecs that encode token by token, on every layout.
#include "support/catch.hpp"
#include "support/random_operations.hpp"

using namespace terse;
using namespace terse::tests;

using PerHead = PagedLayout<HeadPaging::per_head>;
/// Codes share bytes with those of other tokens.
using ThreeBits = AffineGroup<AffineSpec{.bits = 3, .rule = ScaleRule::least_squares}>;

TEST_CASE("identity, contiguous", "[random_operations]") {
  RandomOperations<ContiguousLayout, Identity> run({.seed = 11}, {});
  REQUIRE(run.go() == "");
}

TEST_CASE("identity with sinks, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Identity> run({.seed = 12}, {.tail = TailSpec{.sink_tokens = 5}});
  REQUIRE(run.go() == "");
}

TEST_CASE("3-bit codes, contiguous", "[random_operations]") {
  RandomOperations<ContiguousLayout, ThreeBits> run({.seed = 15}, {});
  REQUIRE(run.go() == "");
}

TEST_CASE("int8, pages per head", "[random_operations]") {
  RandomOperations<PerHead, Int8> run({.seed = 13}, {});
  REQUIRE(run.go() == "");
}

TEST_CASE("rotated int4 with exact sinks, paged", "[random_operations]") {
  RandomOperations<PagedLayout<>, Int4Rotated> run({.seed = 14},
                                                   {.tail = TailSpec{.sink_tokens = 4}});
  REQUIRE(run.go() == "");
}
