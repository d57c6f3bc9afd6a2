/// 16-bit floating-point storage types on raw bits, and conversions that are the same everywhere.
#pragma once

#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Element type of a caller's tensor.
enum class Scalar : std::uint8_t { f32, f16, bf16 };

TERSE_HOST_DEVICE constexpr int scalar_bytes(Scalar scalar) noexcept {
  return scalar == Scalar::f32 ? 4 : 2;
}

struct F16 {
  std::uint16_t bits;
};
struct BF16 {
  std::uint16_t bits;
};
static_assert(sizeof(F16) == 2 && sizeof(BF16) == 2);

inline constexpr float f16_max = 65504.0f;

TERSE_HOST_DEVICE constexpr float to_float(float x) noexcept { return x; }

TERSE_HOST_DEVICE constexpr float to_float(BF16 x) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x.bits) << 16);
}

TERSE_HOST_DEVICE constexpr float to_float(F16 x) noexcept {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    float y;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }"
        : "=f"(y)
        : "r"(static_cast<std::uint32_t>(x.bits)));
    return y;
  }
#endif
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // infinity and NaN
    return __builtin_bit_cast(float, sign | magnitude | 0x7f800000u);
  }
  // Re-biasing by a product with 2^112 is exact and handles subnormals too.
  const float scaled =
      __builtin_bit_cast(float, magnitude) * __builtin_bit_cast(float, 0x77800000u);
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, scaled));
}

/// Round to nearest, ties to even; overflows to infinity as IEEE 754 says. Which NaN a NaN becomes
/// depends on the processor.
TERSE_HOST_DEVICE constexpr F16 to_f16(float x) noexcept {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    std::uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
    return {static_cast<std::uint16_t>(pair)};
  }
#endif
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal result: adding 0.5 aligns the mantissa so that the adder rounds it.
    const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign |
                                       (__builtin_bit_cast(std::uint32_t, aligned) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
}

/// As to_f16, but finite input stays finite: magnitudes above 65504 become 65504. NaN stays NaN.
TERSE_HOST_DEVICE constexpr F16 to_f16_saturating(float x) noexcept {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    float limited;
    asm("{ .reg .f32 low; min.NaN.f32 low, %1, %2; max.NaN.f32 %0, low, %3; }"
        : "=f"(limited)
        : "f"(x), "f"(f16_max), "f"(-f16_max));
    return to_f16(limited);
  }
#endif
  return to_f16(x > f16_max ? f16_max : (x < -f16_max ? -f16_max : x));
}

TERSE_HOST_DEVICE constexpr BF16 to_bf16(float x) noexcept {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
