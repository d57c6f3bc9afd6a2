// q8_0: the numbers of ggml's block format, found by another implementation of its formula.
#include "terse/quant/q8_0.hpp"

#include <cmath>
#include <iterator>

#include "tests/quant/codec_block.hpp"
#include "tests/quant/ggml_blocks.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

TEST_CASE("8.5 bits per element at widths that 32 divides") {
  for (const int width : {64, 128, 256}) {
    CHECK(bits_per_element(Q8_0::record(Side::key, width), width) == 8.5);
    CHECK(bits_per_element(Q8_0::record(Side::value, width), width) == 8.5);
  }
}

TEST_CASE("decoded numbers are those of the block format, bit for bit") {
  Random random(1);
  for (const int width : {64, 80, 96}) {
    for (int round = 0; round < 20; ++round) {
      auto x = random.normals(static_cast<std::size_t>(64 * width), round % 2 == 0 ? 1.0f : 100.0f);
      for (std::size_t i = 0; i < x.size(); i += 41) x[i] = 0.0f;
      if (round % 4 == 3) {
        for (float& v : x) v = to_float(to_f16(v));
      }
      for (const Side side : {Side::key, Side::value}) {
        CodecBlock<Q8_0Plain> block(side, width);
        block.encode_in_basis(x);
        REQUIRE(block.decode_in_basis() == by_blocks(q8_0_block, x, width));
      }
    }
  }
}

TEST_CASE("halves and their neighbours are rounded as by roundf") {
  // max 127 makes the scale 1, so numbers are their own codes.
  std::vector<float> x(64 * 32, 0.0f);
  const float token[] = {127.0f,     0.5f,       -0.5f,       1.5f,         -1.5f,
                         2.5f,       126.5f,     0.49999997f, -0.49999997f, 1.4999999f,
                         2.4999998f, 125.49999f, -127.0f};
  for (std::size_t t = 0; t < 64; ++t) {
    for (std::size_t i = 0; i < std::size(token); ++i) x[t * 32 + i] = token[i];
  }
  CHECK(round_trip<Q8_0Plain>(Side::value, 32, x) == by_blocks(q8_0_block, x, 32));
}

TEST_CASE("the error on Gaussian data stays below its ceiling") {
  constexpr double gaussian_ceiling = 3e-5;
  CHECK(gaussian_error<Q8_0>(Side::key, 64, 10) < gaussian_ceiling);
  CHECK(gaussian_error<Q8_0>(Side::key, 64, 10) > gaussian_ceiling / 3);
}

TEST_CASE("the cache's basis is the Hadamard matrix of 64 channels") {
  static_assert(HasBasis<Q8_0> && !HasBasis<Q8_0Plain>);
  std::vector<float> x(128, 0.0f);
  x[3] = 8.0f;
  to_basis<Q8_0>({Side::key, 128}, x.data());
  for (std::size_t c = 0; c < 128; ++c) CHECK(std::fabs(x[c]) == (c < 64 ? 1.0f : 0.0f));
}

TEST_CASE("finite input stays finite") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<Q8_0>(Side::key, width));
    CHECK(stays_finite<Q8_0>(Side::value, width));
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Q8_0>(Side::key, 64) == 0x41786cab97618a56ull);
  CHECK(golden_hash<Q8_0>(Side::value, 80) == 0xc3e57e370394b229ull);
  CodecBlock<Q8_0> keys(Side::key, 64);
  keys.encode(golden_values(64));
  const std::size_t scales = Q8_0::record(Side::key, 64).sections[1].offset_bytes;
  CHECK(keys.byte(0) == 160);
  CHECK(keys.byte(1) == 197);
  CHECK(keys.byte(scales - 1) == 189);
  CHECK(keys.byte(scales) == 9);
  CHECK(keys.byte(scales + 1) == 38);
}
