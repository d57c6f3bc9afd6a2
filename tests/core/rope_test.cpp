// Rotary position embedding: both pairings, scaling, and turning back.
#include "terse/core/rope.hpp"

#include <cmath>
#include <complex>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;

namespace {

constexpr RopePairing pairings[] = {RopePairing::half_split, RopePairing::interleaved};

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

RopeSpec llama3() {
  return {.rotary_dim = 128,
          .base = 500000.0,
          .low_freq_factor = 1.0,
          .high_freq_factor = 4.0,
          .frequency_scale = 8.0,
          .original_context = 8192.0};
}

}  // namespace

TEST_CASE("a pair is turned as a complex number") {
  tests::Random random(1);
  for (const RopePairing pairing : pairings) {
    const RopeSpec rope{.pairing = pairing, .rotary_dim = 8, .base = 100.0};
    const auto x = random.normals(10);
    auto turned = x;
    rotate(rope, 7, turned.data());
    for (int i = 0; i < 4; ++i) {
      const auto a = static_cast<std::size_t>(pairing == RopePairing::half_split ? i : 2 * i);
      const auto b = pairing == RopePairing::half_split ? a + 4 : a + 1;
      const auto want =
          std::complex<double>(x[a], x[b]) * std::polar(1.0, 7 * std::pow(100.0, -2.0 * i / 8));
      CHECK(turned[a] == Approx(want.real()).margin(1e-6));
      CHECK(turned[b] == Approx(want.imag()).margin(1e-6));
    }
    CHECK(turned[8] == x[8]);  // channels beyond rotary_dim
    CHECK(turned[9] == x[9]);
  }
}

TEST_CASE("turning forth and back gives the vector, and lengths are kept") {
  tests::Random random(2);
  for (const RopePairing pairing : pairings) {
    for (const double positions : {1.0, 63.0, 4095.0, 131071.0}) {
      const RopeSpec rope{.pairing = pairing, .rotary_dim = 64};
      const auto x = random.normals(64);
      auto y = x;
      rotate(rope, positions, y.data());
      CHECK(dot(y, y) == Approx(dot(x, x)).epsilon(1e-5));
      rotate(rope, -positions, y.data());
      for (std::size_t c = 0; c < x.size(); ++c) CHECK(y[c] == Approx(x[c]).margin(1e-5));
    }
  }
}

TEST_CASE("products depend on the distance only") {
  tests::Random random(3);
  for (const RopePairing pairing : pairings) {
    const RopeSpec rope{.pairing = pairing, .rotary_dim = 64};
    const auto q = random.normals(64), k = random.normals(64);
    double first = 0;
    for (const double at : {0.0, 5.0, 1000.0, 100000.0}) {
      auto a = q, b = k;
      rotate(rope, at + 17, a.data());
      rotate(rope, at, b.data());
      if (at == 0.0) first = dot(a, b);
      CHECK(dot(a, b) == Approx(first).margin(1e-4));
    }
  }
}

TEST_CASE("two turns are one: the query rotated twice") {
  // The angle is linear in the position, which StreamingLLM's second rotation relies on.
  tests::Random random(4);
  const RopeSpec rope{.rotary_dim = 64, .linear_scale = 2.0};
  const auto q = random.normals(64);
  for (const double p : {10.0, 99999.0}) {
    auto twice = q, once = q;
    rotate(rope, p, twice.data());
    rotate(rope, 300 - p, twice.data());
    rotate(rope, 300, once.data());
    for (std::size_t c = 0; c < q.size(); ++c) CHECK(twice[c] == Approx(once[c]).margin(1e-5));
  }
}

TEST_CASE("linear scaling divides positions") {
  const RopeSpec plain{.rotary_dim = 64}, scaled{.rotary_dim = 64, .linear_scale = 4.0};
  for (int i = 0; i < 32; ++i) {
    CHECK(scaled.inverse_frequency(i) == Approx(plain.inverse_frequency(i) / 4));
  }
}

TEST_CASE("Llama-3 scaling keeps short waves, divides long ones, and blends between") {
  const RopeSpec rope = llama3();
  const double two_pi = 2 * std::acos(-1.0);
  bool kept = false, divided = false, blended = false;
  double last = 1e9;
  for (int i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -2.0 * i / 128);
    const double wavelength = two_pi / plain;
    const double got = rope.inverse_frequency(i);
    CHECK(got < last);
    last = got;
    if (wavelength < 8192.0 / 4) {
      CHECK(got == Approx(plain));
      kept = true;
    } else if (wavelength > 8192.0) {
      CHECK(got == Approx(plain / 8));
      divided = true;
    } else {
      const double smooth = (8192.0 / wavelength - 1) / 3;
      CHECK(got == Approx(plain * (smooth + (1 - smooth) / 8)));
      blended = true;
    }
  }
  CHECK((kept && divided && blended));
}

TEST_CASE("specifications are validated with a text of their own") {
  CHECK(RopeSpec{}.validate(64).ok());
  CHECK(llama3().validate(128).ok());
  const auto text = [](const RopeSpec& rope) { return std::string(rope.validate(64).text); };
  CHECK(text({.rotary_dim = 65}).find("rotary_dim") != std::string::npos);
  CHECK(text({.rotary_dim = 66}).find("rotary_dim") != std::string::npos);
  CHECK(text({.rotary_dim = -2}).find("rotary_dim") != std::string::npos);
  CHECK(text({.rotary_dim = 64, .base = 0}).find("base") != std::string::npos);
  CHECK(text({.rotary_dim = 64, .linear_scale = 0}).find("linear_scale") != std::string::npos);
  CHECK(text({.rotary_dim = 64, .low_freq_factor = 4, .high_freq_factor = 1})
            .find("high_freq_factor") != std::string::npos);
  CHECK(text({.rotary_dim = 64, .low_freq_factor = 1, .high_freq_factor = 4})
            .find("original_context") != std::string::npos);
}

TEST_CASE("no rotated channels: nothing is turned") {
  float x[] = {1, 2, 3, 4};
  rotate(RopeSpec{}, 1000, x);
  CHECK((x[0] == 1 && x[1] == 2 && x[2] == 3 && x[3] == 4));
}
