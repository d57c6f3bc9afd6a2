// Which tokens are exact: a rule of the query's position alone.
#include "terse/policy/tail.hpp"

#include <string>

#include "tests/support/catch.hpp"

using namespace terse;

TEST_CASE("the rule of the design, for all positions and parameters") {
  for (const int min_tokens : {0, 1, 16, 63, 64, 65, 128}) {
    for (const int granule : {64, 128, 256}) {
      const TailSpec tail{min_tokens, granule};
      REQUIRE(tail.validate().ok());
      std::int64_t last = 0;
      for (std::int64_t p = 0; p < 1000; ++p) {
        const std::int64_t sealed = tail.sealed_before(p);
        REQUIRE(sealed % granule == 0);
        REQUIRE(sealed >= last);  // nothing is ever un-sealed
        REQUIRE(p + 1 - sealed >= min_tokens - (p + 1 < min_tokens ? min_tokens : 0));
        REQUIRE(p + 1 - sealed < min_tokens + granule + (min_tokens == 0 ? 1 : 0));
        last = sealed;
      }
    }
  }
}

TEST_CASE("exact values of the rule") {
  const TailSpec tail{.min_tokens = 1, .granule_tokens = 128};
  CHECK(tail.sealed_before(0) == 0);
  CHECK(tail.sealed_before(127) == 0);
  CHECK(tail.sealed_before(128) == 128);
  CHECK(tail.sealed_before(255) == 128);
  CHECK(tail.sealed_before(256) == 256);
  CHECK(TailSpec{}.sealed_before(63) == 64);
}

TEST_CASE("the capacity holds what a step may leave unsealed") {
  for (const int min_tokens : {0, 1, 64, 100}) {
    for (const int granule : {64, 128}) {
      for (const int step : {1, 7, 64, 200}) {
        const TailSpec tail{min_tokens, granule};
        // Before the step everything the last query read exactly lies there, and the step's tokens.
        std::int64_t most = 0;
        for (std::int64_t length = 1; length < 700; ++length) {
          const std::int64_t exact = length - tail.sealed_before(length - 1);
          most = exact + step > most ? exact + step : most;
        }
        CHECK(tail.capacity_tokens(step) >= most);
        CHECK(tail.capacity_tokens(step) <= most + 1);
      }
    }
  }
}

TEST_CASE("specifications are validated with a text of their own") {
  const auto text = [](const TailSpec& tail) { return std::string(tail.validate().text); };
  CHECK(text({.min_tokens = -1}).find("min_tokens") != std::string::npos);
  CHECK(text({.granule_tokens = 0}).find("granule_tokens") != std::string::npos);
  CHECK(text({.granule_tokens = 96}).find("granule_tokens") != std::string::npos);
  CHECK(text({.sink_tokens = 17}).find("sink_tokens") != std::string::npos);
  CHECK(text({.sink_tokens = -1}).find("sink_tokens") != std::string::npos);
  CHECK(TailSpec{.sink_tokens = 16}.validate().ok());
}

TEST_CASE("a tail as a part of a policy") {
  static_assert(Tail<TailSpec{.min_tokens = 64, .sink_tokens = 4}>::tail.sink_tokens == 4);
}
