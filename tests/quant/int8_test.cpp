// int8: symmetric, one factor per token.
#include "terse/quant/int8.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// Mean squared error on unit Gaussian data at width 128: a step of about 2.8 / 127, squared / 12.
constexpr double gaussian_ceiling = 5e-5;

}  // namespace

TEST_CASE("8 + 16 / width bits per element") {
  CHECK(bits_per_element(Int8::record(Side::key, 64), 64) == 8.25);
  CHECK(bits_per_element(Int8::record(Side::value, 128), 128) == 8.125);
}

TEST_CASE("each token has the factor max|x| / 127 and codes around 128") {
  Random random(1);
  const auto x = random.normals(64 * 80);
  for (const Side side : {Side::key, Side::value}) {
    CodecBlock<Int8> block(side, 80);
    block.encode(x);
    const Record r = Int8::record(side, 80);
    for (int t = 0; t < 64; ++t) {
      float peak = 0;
      for (int c = 0; c < 80; ++c) peak = std::max(peak, std::fabs(x[block.index(t, c)]));
      F16 factor;
      std::memcpy(&factor, block.bytes().data() + r.sections[1].offset_bytes + 2 * t, 2);
      REQUIRE(factor.bits == to_f16(peak / 127.0f).bits);
      for (int c = 0; c < 80; ++c) {
        const double steps = double{x[block.index(t, c)]} / to_float(factor);
        const double code =
            load_code<8>(block.bytes().data(), code_place<8>(side, 80, t, c)) - 128.0;
        REQUIRE(std::fabs(code - steps) <= 0.5 + 1e-4);
      }
    }
  }
}

TEST_CASE("a token is independent of the others") {
  Random random(2);
  auto x = random.normals(64 * 64);
  const auto before = round_trip<Int8>(Side::key, 64, x);
  for (std::size_t c = 0; c < 64; ++c) x[9 * 64 + c] *= 1000.0f;
  const auto after = round_trip<Int8>(Side::key, 64, x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i / 64 != 9) REQUIRE(before[i] == after[i]);
  }
}

TEST_CASE("the error on Gaussian data stays below its ceiling") {
  CHECK(gaussian_error<Int8>(Side::key, 128, 10) < gaussian_ceiling);
  CHECK(gaussian_error<Int8>(Side::value, 128, 10) < gaussian_ceiling);
  CHECK(gaussian_error<Int8>(Side::value, 128, 10) > gaussian_ceiling / 2);
}

TEST_CASE("finite input stays finite") {
  for (const int width : {20, 64}) {
    CHECK(stays_finite<Int8>(Side::key, width));
    CHECK(stays_finite<Int8>(Side::value, width));
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Int8>(Side::key, 64) == 0x4b5ead7b77b878aeull);
  CHECK(golden_hash<Int8>(Side::value, 80) == 0x85c8f374a8cbdeull);
  CodecBlock<Int8> keys(Side::key, 64);
  keys.encode(golden_values(64));
  CHECK(keys.byte(0) == 141);
  CHECK(keys.byte(1) == 122);
  CHECK(keys.byte(4095) == 136);
  CHECK(keys.byte(4096) == 154);
  CHECK(keys.byte(4097) == 37);
}
