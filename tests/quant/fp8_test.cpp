// E4M3: all 256 codes, rounding of every fp16 number, and the codec.
#include "terse/quant/fp8.hpp"

#include <cmath>
#include <limits>

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// The value of a code by the definition: bias 7, no infinities.
double definition(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15u);
  const double mantissa = code & 7u;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa / 8, -6) : std::ldexp(1 + mantissa / 8, exponent - 7);
  return (code & 0x80u) != 0 ? -magnitude : magnitude;
}

/// Nearest code by search, ties to the even code, saturating.
unsigned nearest(double x) {
  unsigned best = 0;
  for (unsigned code = 1; code < 0x7fu; ++code) {
    const double gap = std::fabs(definition(code) - std::fabs(x));
    const double best_gap = std::fabs(definition(best) - std::fabs(x));
    if (gap < best_gap || (gap == best_gap && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(x) ? 0x80u : 0u);
}

}  // namespace

TEST_CASE("every code has its value, and comes back from it") {
  for (unsigned code = 0; code < 256; ++code) {
    if ((code & 0x7fu) == 0x7fu) continue;  // NaN in the format; never written
    const float value = from_e4m3(static_cast<std::uint8_t>(code));
    CAPTURE(code);
    REQUIRE(double{value} == definition(code));
    REQUIRE(std::signbit(value) == (code >= 128));
    REQUIRE(to_e4m3(value) == code);
  }
  CHECK(from_e4m3(0x7e) == e4m3_max);
}

TEST_CASE("every fp16 number is rounded to the nearest code, ties to even") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 0x10000u; bits += 1) {
    if ((bits & 0x7c00u) == 0x7c00u) continue;
    const float x = to_float(F16{static_cast<std::uint16_t>(bits)});
    if (bits % 7 != 0 && std::fabs(x) > 500) continue;
    wrong += to_e4m3(x) != nearest(x) ? 1 : 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("ties and their neighbours in fp32") {
  for (unsigned code = 0; code + 1 < 0x7fu; ++code) {
    const auto tie = static_cast<float>((definition(code) + definition(code + 1)) / 2);
    CAPTURE(code);
    CHECK(to_e4m3(tie) == (code % 2 == 0 ? code : code + 1));
    CHECK(to_e4m3(std::nextafter(tie, 0.0f)) == code);
    CHECK(to_e4m3(std::nextafter(tie, 1e9f)) == code + 1);
    CHECK(to_e4m3(-std::nextafter(tie, 1e9f)) == (code + 1 | 0x80u));
  }
}

TEST_CASE("magnitudes beyond 448 become 448") {
  for (const float x : {448.0f, 449.0f, 464.0f, 465.0f, 480.0f, 65504.0f, 3e38f,
                        std::numeric_limits<float>::infinity()}) {
    CHECK(to_e4m3(x) == 0x7e);
    CHECK(to_e4m3(-x) == 0xfe);
  }
  CHECK(to_e4m3(1e-40f) == 0);
  CHECK(to_e4m3(-1e-40f) == 0x80);
}

TEST_CASE("the codec stores keys channel by channel and values token by token") {
  CodecBlock<Fp8> keys(Side::key, 20), values(Side::value, 20);
  std::vector<float> x(64 * 20, 0.0f);
  x[3 * 20 + 5] = 1.0f;
  keys.encode(x);
  values.encode(x);
  CHECK(keys.byte(5 * 64 + 3) == 0x38);
  CHECK(values.byte(3 * 20 + 5) == 0x38);
  CHECK(keys.decode() == x);
  CHECK(values.decode() == x);
}

TEST_CASE("8 bits per element, relative error at most 1/16, finite always") {
  CHECK(bits_per_element(Fp8::record(Side::key, 64), 64) == 8.0);
  CHECK(bits_per_element(Fp8::record(Side::value, 80), 80) == 8.0);
  Random random(4);
  const auto x = random.normals(64 * 80);
  const auto decoded = round_trip<Fp8>(Side::value, 80, x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    REQUIRE(std::fabs(x[i] - decoded[i]) <= std::max(std::fabs(x[i]) / 16, 0x1p-10f));
  }
  CHECK(stays_finite<Fp8>(Side::key, 20));
  CHECK(stays_finite<Fp8>(Side::value, 64));
}

TEST_CASE("copy_token moves a token exactly and nothing else") {
  Random random(5);
  for (const Side side : {Side::key, Side::value}) {
    CodecBlock<Fp8> from(side, 20), to(side, 20);
    from.encode(random.normals(64 * 20));
    to.encode(random.normals(64 * 20));
    const auto source = from.decode(), before = to.decode();
    Fp8::copy_token(from.context(), from.bytes().data(), 2, to.bytes().data(), 63);
    const auto after = to.decode();
    for (int t = 0; t < 64; ++t) {
      for (int c = 0; c < 20; ++c) {
        REQUIRE(after[to.index(t, c)] ==
                (t == 63 ? source[from.index(2, c)] : before[to.index(t, c)]));
      }
    }
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Fp8>(Side::key, 64) == 0xeceb79dc176711bcull);
  CHECK(golden_hash<Fp8>(Side::value, 80) == 0x79c578306e459c0aull);
  CodecBlock<Fp8> values(Side::value, 64);
  values.encode(golden_values(64));
  CHECK(values.byte(0) == 41);
  CHECK(values.byte(1) == 181);
  CHECK(values.byte(4095) == 38);
}
