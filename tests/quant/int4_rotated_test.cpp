// Rotated int4: Hadamard, zero-free grid, one least-squares factor per token.
#include "terse/quant/int4_rotated.hpp"

#include <cmath>

#include "terse/policy/codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// Best uniform grid of 16 levels on unit Gaussian data has 0.01154; six steps come this near.
constexpr double gaussian_ceiling = 0.0125;

}  // namespace

TEST_CASE("4 + 16 / width bits per element") {
  CHECK(bits_per_element(Int4Rotated::record(Side::key, 64), 64) == 4.25);
  CHECK(bits_per_element(Int4Rotated::record(Side::value, 128), 128) == 4.125);
}

TEST_CASE("it has a basis and encodes single tokens") {
  static_assert(Codec<Int4Rotated> && HasBasis<Int4Rotated> && CanEncodeToken<Int4Rotated>);
  static_assert(Int4Rotated::granularity == Granularity::per_token);
  static_assert(Int4Rotated::affine_format.centre == 7.5f);
}

TEST_CASE("the error on Gaussian data stays near that of the best uniform grid") {
  for (const int width : {64, 128}) {
    const double error = gaussian_error<Int4Rotated>(Side::key, width, 20);
    CAPTURE(width, error);
    CHECK(error < gaussian_ceiling);
    CHECK(error > 0.008);
  }
}

TEST_CASE("the rotation pays for outlier channels") {
  using Plain = AffineGroup<AffineSpec{.bits = 4, .rule = ScaleRule::least_squares}>;
  Random random(3);
  auto x = random.normals(64 * 128);
  for (std::size_t t = 0; t < 64; ++t) x[t * 128 + 40] *= 30.0f;
  const double rotated = mean_square_error(x, round_trip<Int4Rotated>(Side::key, 128, x));
  const double plain = mean_square_error(x, round_trip<Plain>(Side::key, 128, x));
  CAPTURE(rotated, plain);
  CHECK(rotated < plain / 2);
}

TEST_CASE("the factor makes the decoded vector an unbiased projection") {
  // Least squares: the error is orthogonal to the decoded vector, but for the factor's rounding.
  Random random(4);
  const auto x = random.normals(64 * 64);
  const auto decoded = round_trip<Int4Rotated>(Side::value, 64, x);
  for (std::size_t t = 0; t < 64; ++t) {
    double product = 0, norm = 0;
    for (std::size_t c = 0; c < 64; ++c) {
      product += (double{x[t * 64 + c]} - decoded[t * 64 + c]) * decoded[t * 64 + c];
      norm += double{decoded[t * 64 + c]} * decoded[t * 64 + c];
    }
    REQUIRE(std::fabs(product) <= 0x1p-10 * norm);
  }
}

TEST_CASE("finite input stays finite") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<Int4Rotated>(Side::key, width));
    CHECK(stays_finite<Int4Rotated>(Side::value, width));
  }
}

TEST_CASE("copy_token moves a token exactly") {
  Random random(5);
  CodecBlock<Int4Rotated> from(Side::value, 80), to(Side::value, 80);
  from.encode(random.normals(64 * 80));
  to.encode(random.normals(64 * 80));
  const auto source = from.decode_in_basis(), before = to.decode_in_basis();
  Int4Rotated::copy_token(from.context(), from.bytes().data(), 63, to.bytes().data(), 0);
  const auto after = to.decode_in_basis();
  for (int t = 0; t < 64; ++t) {
    for (int c = 0; c < 80; ++c) {
      REQUIRE(after[to.index(t, c)] ==
              (t == 0 ? source[from.index(63, c)] : before[to.index(t, c)]));
    }
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Int4Rotated>(Side::key, 64) == 0x3744bad9e3b96bb1ull);
  CHECK(golden_hash<Int4Rotated>(Side::value, 80) == 0x9171f1566cf6a7d5ull);
  CHECK(golden_hash<Int4Rotated>(Side::key, 256) == 0xfed6c759b21957eull);
  CodecBlock<Int4Rotated> keys(Side::key, 64);
  keys.encode(golden_values(64));
  CHECK(keys.byte(0) == 121);
  CHECK(keys.byte(1) == 123);
  CHECK(keys.byte(2047) == 180);
  CHECK(keys.byte(2048) == 195);
  CHECK(keys.byte(2049) == 54);
}
