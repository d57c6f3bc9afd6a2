// Whole rows of multiply-adds are the same numbers as single ones in order, on every machine.
#include "terse/core/multiply_add.hpp"

#include <cmath>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;
using namespace terse::tests;

TEST_CASE("add_scaled and add_rows round each number once, rows in order") {
  Random random(1);
  for (const int width : {1, 7, 8, 63, 64, 65, 80, 128, 200}) {
    for (const int rows : {0, 1, 5, 64}) {
      const auto size = static_cast<std::size_t>(rows * width);
      const auto matrix = random.normals(size), x = random.normals(static_cast<std::size_t>(rows));
      const auto start = random.normals(static_cast<std::size_t>(width));
      std::vector<float> one_by_one = start, by_rows = start, expected = start;
      for (int r = 0; r < rows; ++r) {
        const float* row = matrix.data() + static_cast<std::ptrdiff_t>(r) * width;
        const float factor = x[static_cast<std::size_t>(r)];
        add_scaled(factor, row, width, one_by_one.data());
        for (int c = 0; c < width; ++c) {
          float& sum = expected[static_cast<std::size_t>(c)];
          sum = std::fma(factor, row[c], sum);
        }
      }
      add_rows(x.data(), matrix.data(), rows, width, by_rows.data());
      CAPTURE(width, rows);
      CHECK(one_by_one == expected);
      CHECK(by_rows == expected);
    }
  }
}

TEST_CASE("sums of products have 32 partial sums, neighbours added first") {
  // With these numbers every other order gives another sum: all small ones vanish beside 2^24.
  std::vector<float> a(96, 1.0f);
  const std::vector<float> ones(96, 1.0f);
  a[0] = 0x1p24f;    // partial sum 0: 2^24 + 1 + 1 = 2^24, each rounded to even
  a[33] = -0x1p24f;  // partial sum 1: 1 - 2^24 + 1
  // Neighbours 0 and 1 leave 2; the other thirty have 3 each.
  CHECK(sum_of_products(a.data(), ones.data(), 96) == 2.0f + 30.0f * 3.0f);
  CHECK(sum_of_products(a.data() + 1, ones.data(), 5) == 5.0f);
  CHECK(sum_of_products(a.data(), ones.data(), 0) == 0.0f);
}
