/// Functions of masks beside plain loops.
#include "terse/core/bits.hpp"

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace terse;
using namespace terse::tests;

TEST_CASE("the lowest bits of a mask go", "[core][bits]") {
  Random random(1);
  for (int turn = 0; turn < 200; ++turn) {
    std::uint64_t mask = 0;
    const int sparse = 1 + random.below(8);
    for (unsigned i = 0; i < 64; ++i) {
      if (random.below(sparse) == 0) mask |= std::uint64_t{1} << i;
    }
    if (turn == 0) mask = ~std::uint64_t{0};
    if (turn == 1) mask = 0;
    std::uint64_t expected = mask;
    for (int n = 0; n <= count_ones(mask); ++n) {
      REQUIRE(without_lowest(mask, n) == expected);
      expected &= expected - 1;
    }
  }
}
