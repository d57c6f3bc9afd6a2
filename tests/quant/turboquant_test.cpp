// TurboQuant: the levels against Lloyd's iteration, the error on Gaussian data, factors, hard
// input.
#include "terse/quant/turboquant.hpp"

#include <array>
#include <cmath>

#include "terse/policy/codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Bits>
using AsInThePaper = TurboQuant<TurboQuantSpec{.bits = Bits, .corrects_norm = false}>;

double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)); }
/// Of N(0, 1) beyond x.
double beyond(double x) { return 0.5 * std::erfc(x / std::sqrt(2.0)); }

/// The positive levels of least mean squared error for N(0, 1), by Lloyd's iteration: a level is
/// the mean of the numbers that are nearest to it.
template <int Bits>
std::array<double, (1 << (Bits - 1))> lloyd_max_levels() {
  constexpr std::size_t n = 1u << (Bits - 1);
  std::array<double, n> levels{};
  for (std::size_t i = 0; i < n; ++i) levels[i] = 2.6 * (static_cast<double>(i) + 0.5) / n;
  for (double moved = 1; moved > 1e-12;) {
    moved = 0;
    const auto before = levels;
    for (std::size_t i = 0; i < n; ++i) {
      const double low = i == 0 ? 0.0 : (before[i - 1] + before[i]) / 2;
      const bool last = i + 1 == n;
      const double high = last ? 0.0 : (before[i] + before[i + 1]) / 2;
      levels[i] = (density(low) - (last ? 0.0 : density(high))) /
                  (beyond(low) - (last ? 0.0 : beyond(high)));
      moved = std::fmax(moved, std::fabs(levels[i] - before[i]));
    }
  }
  return levels;
}

template <int Bits>
void check_levels() {
  using Levels = TurboQuantLevels<TurboQuantSpec{.bits = Bits}>;
  const auto expected = lloyd_max_levels<Bits>();
  constexpr auto half = static_cast<unsigned>(expected.size());
  for (unsigned i = 0; i < half; ++i) {
    CAPTURE(Bits, i);
    CHECK(std::fabs(Levels::level(half + i) - expected[i]) < 2e-7);
    CHECK(Levels::level(half - 1 - i) == -Levels::level(half + i));
  }
}

double dot(const std::vector<float>& a, const std::vector<float>& b, std::size_t first, int width) {
  double sum = 0;
  for (std::size_t i = first; i < first + static_cast<std::size_t>(width); ++i) {
    sum += double{a[i]} * b[i];
  }
  return sum;
}

/// `published`: the least error of a scalar quantizer on the sphere of 128 dimensions.
template <int Bits>
void check_error(double published) {
  const double error = gaussian_error<AsInThePaper<Bits>>(Side::key, 128, 40);
  CAPTURE(Bits, error);
  CHECK(std::fabs(error / published - 1) < 0.01);
}

/// Both factors decode to one direction, at the lengths that they promise.
template <int Bits>
void check_lengths(int width, float size) {
  Random random(8);
  const auto x = random.normals(static_cast<std::size_t>(64 * width), size);
  const auto paper = round_trip<AsInThePaper<Bits>>(Side::value, width, x);
  const auto corrected =
      round_trip<TurboQuant<TurboQuantSpec{.bits = Bits}>>(Side::value, width, x);
  for (std::size_t t = 0; t < 64; ++t) {
    const std::size_t first = t * static_cast<std::size_t>(width);
    const double length = dot(x, x, first, width), of_paper = dot(paper, paper, first, width);
    const double of_corrected = dot(corrected, corrected, first, width);
    CAPTURE(Bits, size, t, length, of_paper, of_corrected);
    REQUIRE(std::fabs(std::sqrt(of_corrected / length) - 1) < 1e-3);
    REQUIRE(std::fabs(of_paper / length - 1) < 0.4);
    REQUIRE(std::fabs(dot(paper, corrected, first, width) / std::sqrt(of_paper * of_corrected) -
                      1) < 1e-6);
  }
}

}  // namespace

TEST_CASE("bits + 16 / width bits per element") {
  CHECK(bits_per_element(TurboQuant2::record(Side::key, 64), 64) == 2.25);
  CHECK(bits_per_element(TurboQuant3::record(Side::value, 64), 64) == 3.25);
  CHECK(bits_per_element(TurboQuant3::record(Side::key, 128), 128) == 3.125);
  CHECK(bits_per_element(TurboQuant4::record(Side::value, 128), 128) == 4.125);
}

TEST_CASE("levels are those of Lloyd and Max for the normal distribution") {
  check_levels<2>();
  check_levels<3>();
  check_levels<4>();
}

TEST_CASE("the error on Gaussian data is that of the optimal scalar quantizer") {
  check_error<2>(0.1160);
  check_error<3>(0.0340);
  check_error<4>(0.00932);
}

TEST_CASE("a vector's length is kept, whatever its size") {
  for (const float size : {1e-2f, 1.0f, 3000.0f}) {
    check_lengths<2>(80, size);
    check_lengths<3>(64, size);
    check_lengths<4>(128, size);
  }
}

TEST_CASE("a number between two levels gets the nearer one") {
  using Levels = TurboQuantLevels<TurboQuantSpec{}>;
  const Levels::Group unit{{}, 1.0f};
  for (unsigned code = 0; code < 8; ++code) {
    CAPTURE(code);
    CHECK(Levels::code_of(Levels::level(code), unit) == code);
    if (code == 7) continue;
    const float middle = (Levels::level(code) + Levels::level(code + 1)) / 2;
    CHECK(Levels::code_of(std::nextafter(middle, -9.0f), unit) == code);
    CHECK(Levels::code_of(std::nextafter(middle, 9.0f), unit) == code + 1);
  }
  CHECK(Levels::code_of(-1e30f, unit) == 0);
  CHECK(Levels::code_of(1e30f, unit) == 7);
}

TEST_CASE("numbers alike in all channels do not end in one") {
  // Without the signs a Hadamard matrix turns such a token into a single number.
  const std::vector<float> x(64 * 128, 5.0f);
  CHECK(mean_square_error(x, round_trip<TurboQuant4>(Side::key, 128, x)) < 0.05 * 25);
}

TEST_CASE("finite input stays finite, zeros stay zeros") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<TurboQuant2>(Side::key, width));
    CHECK(stays_finite<TurboQuant3>(Side::value, width));
    CHECK(stays_finite<AsInThePaper<4>>(Side::key, width));
  }
  const std::vector<float> zeros(64 * 80, 0.0f);
  CHECK(round_trip<TurboQuant3>(Side::key, 80, zeros) == zeros);
  for (const float size : {1e-9f, 1e-25f, 1e-40f}) {
    CHECK(tiny_numbers_are_zeros<TurboQuant3>(Side::key, 64, size));
    CHECK(tiny_numbers_are_zeros<AsInThePaper<2>>(Side::value, 80, size));
  }
}

TEST_CASE("random widths, sizes and outliers come back near") {
  Random random(9);
  for (int i = 0; i < 40; ++i) {
    const int width = 1 + random.below(200);
    auto x = random.normals(static_cast<std::size_t>(64 * width),
                            std::ldexp(1.0f, random.below(24) - 12));
    for (int k = random.below(4); k > 0; --k) {
      x[static_cast<std::size_t>(random.below(64 * width))] *= std::ldexp(1.0f, random.below(8));
    }
    CodecBlock<TurboQuant3> block(i % 2 == 0 ? Side::key : Side::value, width);
    block.encode(x);
    const auto y = block.decode();
    CAPTURE(width);
    REQUIRE(all_finite(y));
    double error = 0, squares = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      error += (double{x[k]} - y[k]) * (double{x[k]} - y[k]);
      squares += double{x[k]} * x[k];
    }
    CHECK(error < squares);
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<TurboQuant2>(Side::key, 64) == 0xe64fccf34b20948bull);
  CHECK(golden_hash<TurboQuant3>(Side::key, 64) == 0xcaec95d14eca01deull);
  CHECK(golden_hash<TurboQuant3>(Side::value, 80) == 0x8f6252444bb26c03ull);
  CHECK(golden_hash<TurboQuant4>(Side::key, 256) == 0x23403c54de5decc9ull);
  CHECK(golden_hash<AsInThePaper<4>>(Side::value, 128) == 0xd567beedb971bf62ull);
}
