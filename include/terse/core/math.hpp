/// Small arithmetic whose result must not depend on the compiler, the flags or the processor.
#pragma once

#include <cmath>
#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <class T>
TERSE_HOST_DEVICE constexpr T ceil_div(T value, T divisor) noexcept {
  return (value + divisor - 1) / divisor;
}

template <class T>
TERSE_HOST_DEVICE constexpr T round_up(T value, T multiple) noexcept {
  return ceil_div(value, multiple) * multiple;
}

template <class T>
TERSE_HOST_DEVICE constexpr T clamp(T value, T low, T high) noexcept {
  return value < low ? low : (high < value ? high : value);
}

/// Of zeros of both signs smaller() and larger() may give either.
TERSE_HOST_DEVICE inline float smaller(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}
TERSE_HOST_DEVICE inline float larger(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}

/// a * b + c, rounded once. Every multiply-add of a policy goes through here: a compiler may fuse a
/// plain a * b + c or not, and codes must not depend on that.
TERSE_HOST_DEVICE inline float fused_multiply_add(float a, float b, float c) noexcept {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

/// a * b, rounded, whatever follows: compilers turn a product and a sum into one operation where
/// they can, even behind a conversion to double and back.
TERSE_HOST_DEVICE inline float rounded_product(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  float product = a * b;
#if defined(__SSE__)
  __asm__("" : "+x"(product));
#else
  __asm__("" : "+m"(product));
#endif
  return product;
#endif
}

/// Makes host compilers take `numbers` from memory as they are: what rounded_product does for one
/// product, between loops that may be vectorised.
template <int N>
inline void settle(float (&numbers)[N]) noexcept {
  __asm__("" : "+m"(numbers));
}

/// a / b, rounded to nearest even whatever the flags.
TERSE_HOST_DEVICE inline float rounded_quotient(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// The square root, rounded to nearest even whatever the flags.
TERSE_HOST_DEVICE inline float rounded_root(float x) noexcept {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

/// 1 / b, rounded to nearest even.
TERSE_HOST_DEVICE inline float rounded_reciprocal(float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __frcp_rn(b);
#else
  return 1.0f / b;
#endif
}

/// a / b, rounded to nearest even, where `inverse` is 1 / b so rounded: on the device three
/// operations without a branch, exact for |a| below 1e30 and quotients that are normal numbers.
/// Where b and `inverse` are 0 the result is 0.
TERSE_HOST_DEVICE inline float quotient_by_inverse(float a, float b, float inverse) noexcept {
#if defined(__CUDA_ARCH__)
  const float q = __fmul_rn(a, inverse);
  return __fmaf_rn(__fmaf_rn(-q, b, a), inverse, q);
#else
  return inverse == 0.0f ? 0.0f : a / b;
#endif
}

/// a / b for a constant b, as quotient_by_inverse.
TERSE_HOST_DEVICE inline float quotient_by_constant(float a, float b) noexcept {
  return quotient_by_inverse(a, b, 1.0f / b);
}

/// Nearest integer, ties to even. Exact for |x| < 2^22, which every code is.
TERSE_HOST_DEVICE inline int round_half_even(float x) noexcept {
  // Adding 1.5 * 2^23 leaves the integer in the low mantissa bits, rounded by the adder itself.
#if defined(__CUDA_ARCH__)  // a conversion would take four times as long
  return __float_as_int(__fadd_rn(x, 12582912.0f)) - 0x4b400000;
#else
  // Flags that let compilers reorder sums must not cancel it.
  float shifted = x + 12582912.0f;
#if defined(__SSE__)
  __asm__("" : "+x"(shifted));
#else
  __asm__("" : "+m"(shifted));
#endif
  return static_cast<int>(shifted - 12582912.0f);
#endif
}

/// The same in the lower 16 bits of a word; the upper ones may be anything.
TERSE_HOST_DEVICE inline std::uint32_t low_bits_half_even(float x) noexcept {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(__fadd_rn(x, 12582912.0f));
#else
  return static_cast<std::uint32_t>(round_half_even(x));
#endif
}

/// The same as a float.
TERSE_HOST_DEVICE inline float whole_half_even(float x) noexcept {
#if defined(__CUDA_ARCH__)  // conversions take four times as long as sums
  return __fsub_rn(__fadd_rn(x, 12582912.0f), 12582912.0f);
#else
  return static_cast<float>(round_half_even(x));
#endif
}

/// The same for all of `numbers`, in loops that host compilers may vectorise.
template <int N>
inline void make_whole_half_even(float (&numbers)[N]) noexcept {
  for (float& x : numbers) x += 12582912.0f;
  settle(numbers);
  for (float& x : numbers) x -= 12582912.0f;
}

/// ln(p / (1 - p)) for 0 < p < 1, within a unit in the last place: the same bits everywhere, which
/// the logarithms of maths libraries are not.
TERSE_HOST_DEVICE inline float log_odds(float p) noexcept {
  // x = m 2^e with m near 1, and ln(m) = 2 atanh(s) with |s| < 0.172 by its series.
  const double x = double{p} / (1.0 - double{p});
  int e = 0;
  double m = std::frexp(x, &e);
  if (m < 0.70710678118654752) {
    m *= 2.0;
    --e;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double series = 1.0 / 23.0;
  for (int k = 21; k >= 1; k -= 2) series = std::fma(series, square, 1.0 / k);
  return static_cast<float>(std::fma(double(e), 0.69314718055994531, 2.0 * s * series));
}

/// Neighbours are added, then neighbours among the results, until one is left. N is a power of two.
template <int N>
TERSE_HOST_DEVICE float sum_of_neighbours(const float (&x)[N]) noexcept {
  if constexpr (N == 1) {
    return x[0];
  } else {
    float sums[N / 2];
    for (int i = 0; i < N / 2; ++i) sums[i] = x[2 * i] + x[2 * i + 1];
    return sum_of_neighbours(sums);
  }
}

/// Of number(0) ... number(count - 1): 32 partial sums of rounded squares, of i, i + 32, ...; then
/// sum_of_neighbours.
template <class Number>
TERSE_HOST_DEVICE float sum_of_squares(int count, Number number) noexcept {
  float partial[32] = {};
  for (int i = 0; i < count; ++i) {
    const float x = number(i);
    partial[i % 32] += rounded_product(x, x);
  }
  return sum_of_neighbours(partial);
}
/// The same as an object, where threads that share the sum may take its place.
struct SumOfSquares {
  template <class Number>
  [[nodiscard]] TERSE_HOST_DEVICE float operator()(int count, Number number) const noexcept {
    return sum_of_squares(count, number);
  }
};

/// Never -0.
TERSE_HOST_DEVICE constexpr float absolute(float x) noexcept {
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, x) & 0x7fffffffu);
}

/// False for NaN and the infinities.
TERSE_HOST_DEVICE inline bool is_finite(float x) noexcept {
  return __builtin_bit_cast(std::uint32_t, x) << 1 < 0xff000000u;
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
