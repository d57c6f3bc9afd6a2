// NVFP4: every element under every scale, rounding of elements, the choice of scales.
#include "terse/quant/nvfp4.hpp"

#include <algorithm>
#include <cmath>

#include "terse/policy/codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr double elements[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

/// The value of an E4M3 code by the definition: bias 7, no infinities.
double scale_definition(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15u);
  const double mantissa = code & 7u;
  return exponent == 0 ? std::ldexp(mantissa / 8, -6) : std::ldexp(1 + mantissa / 8, exponent - 7);
}

/// Nearest element by search, ties to the even code.
unsigned nearest(double x) {
  unsigned best = 0;
  for (unsigned code = 1; code < 8; ++code) {
    const double gap = std::fabs(elements[code] - std::fabs(x));
    const double best_gap = std::fabs(elements[best] - std::fabs(x));
    if (gap < best_gap || (gap == best_gap && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(x) ? 8u : 0u);
}

/// Kernels that look levels up would not do as it does.
struct OwnDecode : NvFp4 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return 2.0f * NvFp4::decode(context, block, token, channel);
  }
};
static_assert(LevelCodec<NvFp4> && LevelCodec<NvFp4Rotated> && !LevelCodec<OwnDecode>);

}  // namespace

TEST_CASE("4.5 bits per element") {
  CHECK(bits_per_element(NvFp4::record(Side::key, 64), 64) == 4.5);
  CHECK(bits_per_element(NvFp4::record(Side::value, 128), 128) == 4.5);
  CHECK(NvFp4::record(Side::value, 80).sections[1].bytes == 5 * 64);
}

TEST_CASE("every element has its value, and comes back from it") {
  for (unsigned code = 0; code < 16; ++code) {
    const float value = from_e2m1(code);
    CAPTURE(code);
    CHECK(std::fabs(double{value}) == elements[code & 7u]);
    CHECK(std::signbit(value) == (code >= 8));
    CHECK(to_e2m1(value) == code);
  }
}

TEST_CASE("elements are rounded to the nearest, ties to even") {
  for (int i = -7 * 4096; i <= 7 * 4096; ++i) {
    const float x = static_cast<float>(i) / 4096.0f;
    if (to_e2m1(x) != nearest(x)) FAIL("wrong code for " << x);
  }
  for (unsigned code = 0; code < 7; ++code) {
    const auto tie = static_cast<float>((elements[code] + elements[code + 1]) / 2);
    CAPTURE(code);
    CHECK(to_e2m1(tie) == (code % 2 == 0 ? code : code + 1));
    CHECK(to_e2m1(std::nextafter(tie, 0.0f)) == code);
    CHECK(to_e2m1(std::nextafter(tie, 9.0f)) == code + 1);
  }
  CHECK(to_e2m1(1e30f) == 7);
  CHECK(to_e2m1(-1e30f) == 15);
}

TEST_CASE("every element under every scale is decoded as the formats say") {
  // 16 channels, one of each element; the scale's bytes are those of the tokens.
  CodecBlock<NvFp4> block(Side::value, 16);
  for (const unsigned first : {0u, 63u}) {  // 0x7f means NaN
    for (int t = 0; t < 64; ++t) {
      block.bytes()[NvFp4::scale_offset(block.context(), t, 0)] =
          static_cast<std::byte>(first + static_cast<unsigned>(t));
      for (int c = 0; c < 16; ++c) {
        store_code<4>(block.bytes().data(), code_place<4>(Side::value, 16, t, c),
                      static_cast<unsigned>(c));
      }
    }
    const auto decoded = block.decode();
    for (int t = 0; t < 64; ++t) {
      const unsigned scale = first + static_cast<unsigned>(t);
      for (int c = 0; c < 16; ++c) {
        const double expected = elements[c % 8] * scale_definition(scale);
        CAPTURE(scale, c);
        REQUIRE(double{decoded[block.index(t, c)]} == (c < 8 ? expected : -expected));
      }
    }
    // A group that holds an element of 6 finds the same scale and the same elements again.
    CodecBlock<NvFp4> again(Side::value, 16);
    again.encode(decoded);
    REQUIRE(again.decode() == decoded);
  }
}

TEST_CASE("the scale brings the largest magnitude of a group to 6") {
  // Two groups and a third of 4 channels, each with its own.
  CodecBlock<NvFp4> keys(Side::key, 36);
  std::vector<float> x(64 * 36, 0.0f);
  x[3] = -12.0f;    // scale 2
  x[4] = 5.0f;      // 2.5 of it: a tie, to even
  x[16] = 0.75f;    // scale 1 / 8
  x[35] = 2800.0f;  // 466.7 is beyond E4M3: 448, and 6.25 beyond E2M1
  keys.encode(x);
  const auto y = keys.decode();
  CHECK(y[3] == -12.0f);
  CHECK(y[4] == 4.0f);
  CHECK(y[16] == 0.75f);
  CHECK(y[35] == 2688.0f);
  CHECK(keys.byte(NvFp4::scale_offset(keys.context(), 0, 15)) == to_e4m3(2.0f));
  CHECK(keys.byte(NvFp4::scale_offset(keys.context(), 0, 16)) == to_e4m3(0.125f));
  CHECK(keys.byte(NvFp4::scale_offset(keys.context(), 0, 35)) == to_e4m3(448.0f));
}

TEST_CASE("the scale of the tensor moves the range") {
  using Small = NvFp4Scaled<NvFp4Spec{.tensor_scale_log2 = -8}>;
  CodecBlock<Small> small(Side::key, 16);
  std::vector<float> x(64 * 16, 0.0f);
  x[0] = 6.0f / 1024;
  x[1] = -0.5f / 1024;
  small.encode(x);
  CHECK(small.decode() == x);
  CHECK(small.byte(Small::scale_offset(small.context(), 0, 0)) == to_e4m3(0.25f));
}

TEST_CASE("scales and elements of Gaussian data are those of the definition") {
  Random random(7);
  for (const float size : {0.01f, 1.0f, 100.0f}) {  // the first has scales that are denormal
    const auto x = random.normals(64 * 40, size);
    CodecBlock<NvFp4> block(Side::key, 40);
    block.encode(x);
    const auto y = block.decode();
    for (int t = 0; t < 64; ++t) {
      for (int first = 0; first < 40; first += 16) {
        const int end = std::min(first + 16, 40);
        double peak = 0;
        for (int c = first; c < end; ++c) {
          peak = std::fmax(peak, std::fabs(double{x[block.index(t, c)]}));
        }
        unsigned best = 0;
        for (unsigned code = 1; code < 0x7f; ++code) {
          const double gap = std::fabs(scale_definition(code) - peak / 6);
          if (gap < std::fabs(scale_definition(best) - peak / 6)) best = code;
        }
        const double scale = scale_definition(best);
        CAPTURE(size, t, first, peak, scale);
        for (int c = first; c < end; ++c) {
          const unsigned code = scale == 0 ? 0 : nearest(x[block.index(t, c)] / scale);
          const double expected = elements[code & 7u] * scale * (code < 8 ? 1 : -1);
          REQUIRE(double{y[block.index(t, c)]} == expected);
        }
      }
    }
  }
}

TEST_CASE("finite input stays finite, zeros stay zeros") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<NvFp4>(Side::key, width));
    CHECK(stays_finite<NvFp4Rotated>(Side::value, width));
  }
  const std::vector<float> zeros(64 * 20, 0.0f);
  CHECK(round_trip<NvFp4>(Side::key, 20, zeros) == zeros);
  CodecBlock<NvFp4> of_negative_zeros(Side::key, 20);
  of_negative_zeros.encode(std::vector<float>(64 * 20, -0.0f));
  CHECK(of_negative_zeros.byte(NvFp4::scale_offset(of_negative_zeros.context(), 0, 0)) == 0);
  for (const float size : {1e-4f, 1e-25f, 1e-40f}) {
    CHECK(tiny_numbers_are_zeros<NvFp4>(Side::value, 20, size));
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<NvFp4>(Side::key, 64) == 0xf22502de0f27e57ull);
  CHECK(golden_hash<NvFp4>(Side::value, 80) == 0x3062f05ff55fdcedull);
  CHECK(golden_hash<NvFp4Rotated>(Side::key, 128) == 0xc7f487b7146aca91ull);
}
