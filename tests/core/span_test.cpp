// Pointer and length.
#include "terse/core/span.hpp"

#include <array>
#include <vector>

#include "tests/support/catch.hpp"

using terse::Span;

namespace {

int sum(Span<const int> span) {
  int total = 0;
  for (const int v : span) total += v;
  return total;
}

}  // namespace

TEST_CASE("spans come from arrays, containers, and pointer and size") {
  const int plain[] = {1, 2, 3};
  const std::vector<int> vector = {4, 5};
  std::array<int, 2> array = {6, 7};
  CHECK(sum(plain) == 6);
  CHECK(sum(vector) == 9);
  CHECK(sum(array) == 13);
  CHECK(sum({plain, 2}) == 3);
  CHECK(sum({}) == 0);
  CHECK(Span<const int>{}.empty());
}

TEST_CASE("a writable span converts to a read-only one and writes through") {
  std::vector<int> values = {1, 2, 3};
  const Span<int> span = values;
  span[1] = 20;
  CHECK(values[1] == 20);
  const Span<const int> view = span;
  CHECK(view.size() == 3);
  CHECK(view.data() == values.data());
  CHECK(view.end() - view.begin() == 3);
}

TEST_CASE("spans are constant expressions") {
  static constexpr int values[] = {1, 2, 4};
  constexpr Span<const int> span = values;
  static_assert(span.size() == 3 && span[2] == 4);
}
