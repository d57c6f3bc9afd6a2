// Victims: the lowest scores, of equal ones the oldest; the same on every processor.
#include "terse/policy/selection.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/policy/token_unit.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

/// Survivors of keep_highest over tokens [begin, end) of `scores.size()`.
std::vector<int> keep(const std::vector<float>& scores, int begin, int end, int count) {
  TokenUnit<NoEviction> unit(static_cast<int>(scores.size()));
  unit.visit([&](auto& list) {
    keep_highest(list, begin, end, count, [&](int i) { return scores[std::size_t(i)]; });
  });
  return unit.survivors();
}

}  // namespace

TEST_CASE("ordered bits have the order of the scores") {
  const float ascending[] = {-infinity, -1e30f, -1.0f, -1e-40f, 0.0f,
                             1e-45f,    0.5f,   1.0f,  1e30f,   infinity};
  for (std::size_t i = 1; i < std::size(ascending); ++i) {
    CHECK(ordered_bits(ascending[i - 1]) < ordered_bits(ascending[i]));
  }
  CHECK(ordered_bits(nan_value) < ordered_bits(-infinity));
  CHECK(ordered_bits(-nan_value) < ordered_bits(-infinity));
}

TEST_CASE("equal scores have equal bits, zeros of both signs too") {
  CHECK(ordered_bits(0.0f) == ordered_bits(-0.0f));
}

TEST_CASE("the highest scores stay") {
  CHECK(keep({5, 1, 4, 2, 3}, 0, 5, 2) == std::vector<int>{0, 2});
  CHECK(keep({5, 1, 4, 2, 3}, 0, 5, 4) == std::vector<int>{0, 2, 3, 4});
  CHECK(keep({5, 1, 4, 2, 3}, 1, 4, 1) == std::vector<int>{0, 2, 4});
}

TEST_CASE("the edges of the budget") {
  CHECK(keep({5, 1, 4}, 0, 3, 0).empty());
  CHECK(keep({5, 1, 4}, 0, 3, -7).empty());
  CHECK(keep({5, 1, 4}, 0, 3, 3) == positions(0, 3));
  CHECK(keep({5, 1, 4}, 0, 3, 100) == positions(0, 3));
  CHECK(keep({5, 1, 4}, 2, 2, 0) == positions(0, 3));
  CHECK(keep({5, 1, 4}, 2, 1, 0) == positions(0, 3));
  CHECK(keep({}, 0, 0, 0).empty());
}

TEST_CASE("of equal scores the newer token survives") {
  CHECK(keep({1, 1, 1, 1}, 0, 4, 3) == positions(1, 4));
  CHECK(keep({1, 1, 1, 1}, 0, 4, 2) == positions(2, 4));
  CHECK(keep({2, 1, 2, 1, 2}, 0, 5, 4) == std::vector<int>{0, 2, 3, 4});
  CHECK(keep(std::vector<float>(300, 0.25f), 0, 300, 100) == positions(200, 300));
}

TEST_CASE("NaN loses against everything") {
  CHECK(keep({nan_value, -infinity, 0}, 0, 3, 2) == positions(1, 3));
  CHECK(keep({1, nan_value, nan_value, 2}, 0, 4, 3) == std::vector<int>{0, 2, 3});
}

TEST_CASE("random scores with many ties, against a sort") {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const int size = 1 + random.below(200);
    std::vector<float> scores;
    for (int i = 0; i < size; ++i) scores.push_back(static_cast<float>(random.below(8)) - 4.0f);
    const int begin = random.below(size), end = begin + random.below(size - begin + 1);
    const int count = random.below(size);
    std::vector<int> order = positions(begin, end);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      const float x = scores[std::size_t(a)], y = scores[std::size_t(b)];
      return x != y ? x > y : a > b;
    });
    if (static_cast<int>(order.size()) > count) order.resize(std::size_t(count));
    std::vector<int> want = join(join(positions(0, begin), order), positions(end, size));
    std::sort(want.begin(), want.end());
    REQUIRE(keep(scores, begin, end, count) == want);
  }
}

TEST_CASE("tokens before a position, and those that a rule kills") {
  TokenUnit<NoEviction> unit(200);
  for (int p = 20; p < 90; ++p) unit.kill(p);
  unit.visit([](auto& list) {
    CHECK(count_before(list, -3) == 0);
    CHECK(count_before(list, 0) == 0);
    CHECK(count_before(list, 20) == 20);
    CHECK(count_before(list, 50) == 20);
    CHECK(count_before(list, 91) == 21);
    CHECK(count_before(list, 1000) == 130);
    kill_if(list, 10, 30, [&](int i) { return list.position(i) % 2 == 0; });
    kill_if(list, 40, 40, [](int) { return true; });
    kill_if(list, 50, 45, [](int) { return true; });
  });
  CHECK(unit.survivors() == join(join(positions(0, 10), {11, 13, 15, 17, 19, 91, 93, 95, 97, 99}),
                                 positions(100, 200)));
}
