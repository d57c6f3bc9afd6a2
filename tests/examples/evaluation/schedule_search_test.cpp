// The greedy search of schedules, on tables made by hand.

#include "evaluation/schedule_search.hpp"

#include <vector>

#include "../model/refusal.hpp"
#include "support/catch.hpp"

using namespace terse::examples;

namespace {

const std::vector<double> bits{3, 2, 4};  // in no order
// [layer, candidate]. Layer 0 gains 4 by its first bit and 2 by the second, layer 1 1 and 6, which
// is 3.5 for each of both at once, layer 2 only loses.
const std::vector<double> losses{6, 10, 4, 19, 20, 13, 6, 5, 7};

}  // namespace

TEST_CASE("bits go where they take most of the loss") {
  using Schedule = std::vector<int>;
  CHECK(search_schedule(bits, losses, 2.0) == Schedule{1, 1, 1});
  CHECK(search_schedule(bits, losses, 2.0 + 1.0 / 3) == Schedule{0, 1, 1});
  CHECK(search_schedule(bits, losses, 2.0 + 2.0 / 3) == Schedule{2, 1, 1});
  CHECK(search_schedule(bits, losses, 3.0) == Schedule{0, 2, 1});
  CHECK(search_schedule(bits, losses, 2.0 + 4.0 / 3) == Schedule{2, 2, 1});
  // What only loses gets nothing, whatever is left.
  CHECK(search_schedule(bits, losses, 16.0) == Schedule{2, 2, 1});
}

TEST_CASE("a budget below the fewest bits is refused") {
  CHECK(terse_test::contains(
      terse_test::refusal_of([] { static_cast<void>(search_schedule(bits, losses, 1.9)); }),
      "below the fewest of the policies, 2.00"));
}
