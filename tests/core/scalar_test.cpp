// 16-bit conversions against the definition of the formats, over all bit patterns.
#include "terse/core/scalar.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

F16 f16(unsigned bits) { return {static_cast<std::uint16_t>(bits)}; }
BF16 bf16(unsigned bits) { return {static_cast<std::uint16_t>(bits)}; }

/// Value of a finite fp16 pattern by definition.
double f16_value(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31u);
  const double mantissa = bits & 1023u;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

}  // namespace

TEST_CASE("every fp16 pattern has its value and comes back from it") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const float x = to_float(f16(bits));
    if ((bits & 0x7c00u) != 0x7c00u) {
      wrong += double{x} != f16_value(bits) || std::signbit(x) != (bits >= 0x8000u);
      wrong += to_f16(x).bits != bits;
      wrong += to_f16_saturating(x).bits != bits;
    } else if ((bits & 0x3ffu) == 0) {
      wrong += !same_bits(x, bits < 0x8000u ? infinity : -infinity);
      wrong += to_f16(x).bits != bits;
    } else {
      wrong += !std::isnan(x);
      wrong += (to_f16(x).bits & 0x7c00u) != 0x7c00u || (to_f16(x).bits & 0x3ffu) == 0;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("between neighbouring fp16 numbers: nearest, ties to even") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 0x7bffu; ++bits) {
    const auto tie = static_cast<float>((f16_value(bits) + f16_value(bits + 1)) / 2);
    const float above = std::nextafter(tie, infinity), below = std::nextafter(tie, 0.0f);
    for (const unsigned sign : {0u, 0x8000u}) {
      const float s = sign == 0 ? 1.0f : -1.0f;
      wrong += to_f16(s * tie).bits != (sign | (bits % 2 == 0 ? bits : bits + 1));
      wrong += to_f16(s * above).bits != (sign | (bits + 1));
      wrong += to_f16(s * below).bits != (sign | bits);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("the ends of fp16") {
  CHECK(to_f16(65504.0f).bits == 0x7bff);
  CHECK(to_f16(65519.996f).bits == 0x7bff);
  CHECK(to_f16(65520.0f).bits == 0x7c00);  // the tie to what would be 65536
  CHECK(to_f16(-1e30f).bits == 0xfc00);
  CHECK(to_f16(0x1p-25f).bits == 0);  // the tie between 0 and the smallest subnormal
  CHECK(to_f16(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
  CHECK(to_f16(-0x1p-25f).bits == 0x8000);
  CHECK(to_f16(1e-45f).bits == 0);
  CHECK(to_f16(-0.0f).bits == 0x8000);
}

TEST_CASE("saturating conversion keeps finite numbers finite") {
  for (const float x : {65504.0f, 65519.0f, 65520.0f, 7e4f, 3e38f, infinity}) {
    CHECK(to_f16_saturating(x).bits == 0x7bff);
    CHECK(to_f16_saturating(-x).bits == 0xfbff);
  }
  CHECK(std::isnan(to_float(to_f16_saturating(std::numeric_limits<float>::quiet_NaN()))));
}

TEST_CASE("every bf16 pattern has its value and comes back from it") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const float x = to_float(bf16(bits));
    wrong += std::bit_cast<std::uint32_t>(x) != bits << 16;
    if (std::isnan(x)) {
      wrong += !std::isnan(to_float(to_bf16(x)));
    } else {
      wrong += to_bf16(x).bits != bits;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("between neighbouring bf16 numbers: nearest, ties to even") {
  int wrong = 0;
  for (unsigned bits = 0; bits < 0x7f80u; ++bits) {
    const auto tie = std::bit_cast<float>(bits << 16 | 0x8000u);
    const auto above = std::bit_cast<float>(bits << 16 | 0x8001u);
    const auto below = std::bit_cast<float>(bits << 16 | 0x7fffu);
    wrong += to_bf16(tie).bits != (bits % 2 == 0 ? bits : bits + 1);
    wrong += to_bf16(above).bits != bits + 1;
    wrong += to_bf16(below).bits != bits;
    wrong += to_bf16(-tie).bits != (0x8000u | (bits % 2 == 0 ? bits : bits + 1));
  }
  CHECK(wrong == 0);
  // A NaN whose upper mantissa bits are all zero stays a NaN.
  CHECK(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST_CASE("random fp32 numbers go to a nearest fp16 and bf16 number") {
  tests::Random random(1);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    if (!(std::fabs(x) < 3.38e38f)) continue;  // NaN, and what rounds to infinity
    const unsigned b = to_bf16(x).bits;
    const double gap = std::fabs(double{to_float(bf16(b))} - x);
    for (const unsigned other : {b - 1, b + 1}) {
      const float y = to_float(bf16(other & 0xffffu));
      if (std::isfinite(y)) wrong += std::fabs(double{y} - x) < gap;
    }
    const auto half = static_cast<float>(std::ldexp(double{x}, -100));  // fp16's range and below
    if (std::fabs(half) >= 65504) continue;
    const unsigned h = to_f16(half).bits;
    const double half_gap = std::fabs(double{to_float(f16(h))} - half);
    for (const unsigned other : {h - 1, h + 1}) {
      const float y = to_float(f16(other & 0xffffu));
      if (std::isfinite(y)) wrong += std::fabs(double{y} - half) < half_gap;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("conversions are constant expressions") {
  static_assert(to_f16(1.0f).bits == 0x3c00);
  static_assert(to_float(F16{0x0001}) == 0x1p-24f);
  static_assert(to_bf16(1.0f).bits == 0x3f80);
  static_assert(scalar_bytes(Scalar::f32) == 4 && scalar_bytes(Scalar::bf16) == 2);
}
