// KIVI: bits from the record's size, the paper's arithmetic, stored bytes.
#include "terse/quant/kivi.hpp"

#include <algorithm>
#include <cmath>

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// The formula of the paper's section 3.2 in double, with unrounded parameters.
double paper(double x, double low, double high, int bits) {
  const double top = (1 << bits) - 1;
  const double step = (high - low) / top;
  if (step == 0) return low;
  return std::nearbyint(std::clamp((x - low) / step, 0.0, top)) * step + low;
}

template <KiviSpec S>
double bits(Side side, int width) {
  return side == Side::key ? bits_per_element(Kivi<S>::key_codec::record(side, width), width)
                           : bits_per_element(Kivi<S>::value_codec::record(side, width), width);
}

}  // namespace

TEST_CASE("bits per element are b + 32 / G, by the size of the record") {
  for (const int width : {64, 128, 256}) {
    for (const Side side : {Side::key, Side::value}) {
      CAPTURE(width, side == Side::key);
      CHECK(bits<KiviSpec{}>(side, width) == 3.0);
      CHECK(bits<KiviSpec{.bits = 3}>(side, width) == 4.0);
      CHECK(bits<KiviSpec{.bits = 4}>(side, width) == 5.0);
      CHECK((bits<KiviSpec{.bits = 2, .group_tokens = 64, .group_channels = 64}>(side, width) ==
             2.5));
      CHECK((bits<KiviSpec{.bits = 4, .group_tokens = 16, .group_channels = 16}>(side, width) ==
             6.0));
    }
  }
}

TEST_CASE("keys share scales along tokens, values along channels") {
  constexpr int width = 64;
  Random random(1);
  const auto x = random.normals(64 * width);
  const auto keys = round_trip<Kivi2::key_codec>(Side::key, width, x);
  const auto values = round_trip<Kivi2::value_codec>(Side::value, width, x);
  for (std::size_t t = 0; t < 64; t += 5) {
    for (std::size_t c = 0; c < width; c += 3) {
      const auto at = [&](std::size_t token, std::size_t channel) {
        return double{x[token * width + channel]};
      };
      double key_low = 1e9, key_high = -1e9, value_low = 1e9, value_high = -1e9;
      for (std::size_t i = 0; i < 32; ++i) {
        const double k = at(t / 32 * 32 + i, c), v = at(t, c / 32 * 32 + i);
        key_low = std::min(key_low, k);
        key_high = std::max(key_high, k);
        value_low = std::min(value_low, v);
        value_high = std::max(value_high, v);
      }
      // Parameters are rounded to fp16; a code may differ where a number lies at a boundary.
      const double key_step = (key_high - key_low) / 3, value_step = (value_high - value_low) / 3;
      const double key_gap = std::fabs(keys[t * width + c] - paper(at(t, c), key_low, key_high, 2));
      const double value_gap =
          std::fabs(values[t * width + c] - paper(at(t, c), value_low, value_high, 2));
      const auto agrees = [](double gap, double step, double boundary) {
        return gap < 0.01 || (std::fabs(gap - step) < 0.01 && boundary < 0.01);
      };
      const auto boundary = [](double v, double low, double step) {
        const double s = (v - low) / step;
        return std::fabs(std::fabs(s - std::floor(s)) - 0.5);
      };
      REQUIRE(agrees(key_gap, key_step, boundary(at(t, c), key_low, key_step)));
      REQUIRE(agrees(value_gap, value_step, boundary(at(t, c), value_low, value_step)));
    }
  }
}

TEST_CASE("an outlier channel of the keys costs the other channels nothing") {
  Random random(2);
  auto x = random.normals(64 * 64);
  const auto before = round_trip<Kivi2::key_codec>(Side::key, 64, x);
  for (std::size_t t = 0; t < 64; ++t) x[t * 64 + 9] *= 1000.0f;
  const auto after = round_trip<Kivi2::key_codec>(Side::key, 64, x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i % 64 != 9) REQUIRE(before[i] == after[i]);
  }
}

TEST_CASE("the newest p mod R keys stay exact, and R of them are sealed at once") {
  constexpr TailSpec tail = Kivi2::tail;
  static_assert(tail.validate().ok());
  for (std::int64_t length = 1; length < 600; ++length) {
    // The query at position length - 1 comes after the flush of its own step.
    REQUIRE(tail.sealed_before(length - 1) == (length - 1) / 128 * 128);
  }
  CHECK(Kivi<KiviSpec{.residual_tokens = 64}>::tail.sealed_before(64) == 64);
  CHECK(Kivi<KiviSpec{.residual_tokens = 64}>::tail.sealed_before(63) == 0);
}

TEST_CASE("mean squared error of both sides is that of min-max over 32 numbers") {
  CHECK(gaussian_error<Kivi2::key_codec>(Side::key, 64, 60) == Approx(0.155).epsilon(0.02));
  CHECK(gaussian_error<Kivi2::value_codec>(Side::value, 64, 60) == Approx(0.155).epsilon(0.02));
  CHECK(gaussian_error<Kivi3::key_codec>(Side::key, 64, 60) == Approx(0.0281).epsilon(0.02));
  CHECK(gaussian_error<Kivi3::value_codec>(Side::value, 64, 60) == Approx(0.0281).epsilon(0.02));
  CHECK(gaussian_error<Kivi4::key_codec>(Side::key, 64, 60) == Approx(0.0061).epsilon(0.02));
  CHECK(gaussian_error<Kivi4::value_codec>(Side::value, 64, 60) == Approx(0.0061).epsilon(0.02));
}

TEST_CASE("constant groups, huge and tiny numbers stay finite") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<Kivi2::key_codec>(Side::key, width));
    CHECK(stays_finite<Kivi3::key_codec>(Side::key, width));
    CHECK(stays_finite<Kivi4::key_codec>(Side::key, width));
    CHECK(stays_finite<Kivi2::value_codec>(Side::value, width));
    CHECK(stays_finite<Kivi3::value_codec>(Side::value, width));
    CHECK(stays_finite<Kivi4::value_codec>(Side::value, width));
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Kivi2::key_codec>(Side::key, 64) == 0x514f570037af3b70ull);
  CHECK(golden_hash<Kivi2::value_codec>(Side::value, 64) == 0xafcb00038cf4b6dcull);
  CHECK(golden_hash<Kivi3::key_codec>(Side::key, 80) == 0x85c29aab8c353f7bull);
  CHECK(golden_hash<Kivi3::value_codec>(Side::value, 80) == 0xf9c6c9b1bf00c3afull);
  CHECK(golden_hash<Kivi4::key_codec>(Side::key, 80) == 0x68d10e5d3fa618beull);
  CHECK(golden_hash<Kivi4::value_codec>(Side::value, 80) == 0x23e399dbc60993f4ull);
  CodecBlock<Kivi2::key_codec> keys(Side::key, 64);
  keys.encode(golden_values(64));
  const Record r = Kivi2::key_codec::record(Side::key, 64);
  const int literal[] = {keys.byte(0),
                         keys.byte(1),
                         keys.byte(777),
                         keys.byte(r.sections[1].offset_bytes),
                         keys.byte(r.sections[1].offset_bytes + 1),
                         keys.byte(r.sections[2].offset_bytes),
                         keys.byte(r.sections[2].offset_bytes + 1)};
  const int stored[] = {34, 169, 97, 160, 61, 177, 191};
  for (int i = 0; i < 7; ++i) {
    CAPTURE(i);
    CHECK(literal[i] == stored[i]);
  }
}
