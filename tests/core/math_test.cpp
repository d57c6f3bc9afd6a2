// Small arithmetic whose result may not depend on the compiler.
#include "terse/core/math.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;

TEST_CASE("division and rounding up") {
  CHECK(ceil_div(0, 4) == 0);
  CHECK(ceil_div(1, 4) == 1);
  CHECK(ceil_div(4, 4) == 1);
  CHECK(ceil_div(5, 4) == 2);
  CHECK(round_up(0, 16) == 0);
  CHECK(round_up(17, 16) == 32);
  CHECK(round_up(32, 16) == 32);
  static_assert(round_up(std::size_t{129}, std::size_t{128}) == 256);
}

TEST_CASE("clamp") {
  CHECK(clamp(5, 0, 3) == 3);
  CHECK(clamp(-5, 0, 3) == 0);
  CHECK(clamp(2, 0, 3) == 2);
}

TEST_CASE("round_half_even agrees with the default rounding of IEEE 754") {
  for (int i = -40; i <= 40; ++i) {
    const float x = static_cast<float>(i) / 2.0f;
    CHECK(round_half_even(x) == static_cast<int>(std::nearbyint(x)));
    CHECK(round_half_even(std::nextafter(x, 1e9f)) ==
          static_cast<int>(std::nearbyint(std::nextafter(x, 1e9f))));
  }
  tests::Random random(1);
  int wrong = 0;
  for (int i = 0; i < 100000; ++i) {
    const auto x = static_cast<float>((random.uniform() - 0.5) * 8388606.0);
    wrong += round_half_even(x) != static_cast<int>(std::nearbyint(x)) ? 1 : 0;
    wrong += whole_half_even(x) != std::nearbyint(x) ? 1 : 0;
  }
  CHECK(wrong == 0);
  float many[] = {-2.5f, -0.75f, 0.5f, 1.5f, 7.499f};
  make_whole_half_even(many);
  CHECK(std::equal(std::begin(many), std::end(many), std::begin({-2.0f, -1.0f, 0.0f, 2.0f, 7.0f})));
}

TEST_CASE("settled products are rounded before they are added") {
  const float a = 1.0f + 0x1p-12f;  // whose exact square is 1 + 2^-11 + 2^-24
  float many[64], sums[64];
  std::fill(std::begin(many), std::end(many), a);
  settle(many);
  for (float& x : many) x *= x;
  settle(many);
  for (int i = 0; i < 64; ++i) sums[i] = many[i] - 1.0f;
  for (const float sum : sums) CHECK(sum == 0x1p-11f);
  CHECK(rounded_product(a, a) - 1.0f == 0x1p-11f);
}

TEST_CASE("multiply and add are rounded once") {
  const float a = 1.0f + 0x1p-12f;
  // The exact square is 1 + 2^-11 + 2^-24; the last term survives one rounding only.
  CHECK(fused_multiply_add(a, a, -1.0f) == 0x1p-11f + 0x1p-24f);
}

TEST_CASE("finite numbers") {
  CHECK(is_finite(0.0f));
  CHECK(is_finite(-std::numeric_limits<float>::max()));
  CHECK(is_finite(std::numeric_limits<float>::denorm_min()));
  CHECK_FALSE(is_finite(std::numeric_limits<float>::infinity()));
  CHECK_FALSE(is_finite(-std::numeric_limits<float>::infinity()));
  CHECK_FALSE(is_finite(std::numeric_limits<float>::quiet_NaN()));
  CHECK_FALSE(is_finite(-std::numeric_limits<float>::quiet_NaN()));
  CHECK(absolute(-2.5f) == 2.5f);
  CHECK_FALSE(std::signbit(absolute(-0.0f)));
}

TEST_CASE("the logarithm of odds") {
  CHECK(log_odds(0.5f) == 0.0f);
  for (int i = 1; i < 4000; ++i) {
    const auto n = static_cast<float>(i);
    for (const float p :
         {n / 4000.0f, n * 1e-9f, std::ldexp(1.0f, -1 - i / 32), 1.0f - n * 0x1p-24f}) {
      const double exact = std::log(double{p} / (1.0 - double{p}));
      const float own = log_odds(p);
      CAPTURE(p);
      REQUIRE(std::fabs(own - exact) <= 0x1p-24 * std::fabs(exact) * 1.0001);
    }
  }
}
