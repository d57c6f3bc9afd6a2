/// How many planes of each run AlignedKV reads (PlaneRule::exponents; Tan, Wang, Yan and Deng,
/// arXiv 2409.16546): bits of a term are left out that lie below the last bit of the largest term,
/// as exponents alone tell.
///
/// As the authors' code does it (AlignedQuant/AlignedKV), but for what are mistakes there: the
/// largest exponent of a channel is that of the largest magnitude, not of the largest number;
/// values lose 4 and 8 bits at 4 and 8 powers of two, not at 1 and 2; the estimate of the output is
/// halved for its absolute values, as intended; differences do not wrap. Also, largest exponents of
/// keys are those of a block of 64 tokens, not of all so far, queries that share keys take the most
/// planes that one of them needs, and two planes that are not read count as 0x88, not as 0x80.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/quant/planes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Planes of fp16 numbers.
template <class C>
concept ExponentPlanes = PlaneCodec<C> && C::plane_code == PlaneCode::f16;

/// Exponent field of a number as fp16.
[[nodiscard]] inline int f16_exponent(float x) noexcept {
  return to_f16_saturating(x).bits >> 10 & 31;
}

/// Fewest planes, at least one, without bits that a term may miss which lies `gap / unit` powers of
/// two below the largest.
template <ExponentPlanes C>
[[nodiscard]] constexpr int planes_at_gap(int gap, int unit) noexcept {
  int planes = 1;
  while (planes < C::num_planes && C::missing_bits(planes) * unit > gap) ++planes;
  return planes;
}

/// Planes of each channel, `planes [width]`, for the products of `queries [vectors, width] *
/// unscale` with channels whose largest exponents are `exponents [width]`.
template <ExponentPlanes C>
void plan_keys_by_exponent(const float* queries, int vectors, int width, float unscale,
                           const std::uint8_t* exponents, int margin,
                           std::uint8_t* planes) noexcept {
  for (int c = 0; c < width; ++c) planes[c] = 1;
  for (int v = 0; v < vectors; ++v) {
    const float* query = queries + std::ptrdiff_t{v} * width;
    const auto product = [&](int c) { return f16_exponent(query[c] * unscale) + exponents[c]; };
    int leading = 0;
    for (int c = 0; c < width; ++c) leading = product(c) > leading ? product(c) : leading;
    for (int c = 0; c < width; ++c) {
      const int need = planes_at_gap<C>(leading - product(c) - margin, 1);
      if (need > planes[c]) planes[c] = static_cast<std::uint8_t>(need);
    }
  }
}

/// Tokens whose values, the likeliest of every 32nd, give the estimate of an output.
inline constexpr int estimate_tokens = 32;

/// The exponent that a probability may have for its value's last bits to count: the least over
/// channels of the estimate's exponent less that of the channel's largest value. `estimate
/// [width]`: sums of probability * |value|, by the first plane; `exponents [width]`.
[[nodiscard]] inline int aligned_exponent(const float* estimate, const std::uint8_t* exponents,
                                          int width) noexcept {
  int least = 64;
  for (int c = 0; c < width; ++c) {
    const int own = f16_exponent(estimate[c]) - 1 + 15 - exponents[c];
    least = own < least ? own : least;
  }
  return least;
}

/// Planes of a value that is taken with `probability`.
template <ExponentPlanes C>
[[nodiscard]] int planes_of_value(int aligned, float probability, int margin) noexcept {
  constexpr int unit = 1 << 10;  // of an exponent in fp16's bits, whose mantissa counts too
  return planes_at_gap<C>((aligned - margin) * unit - to_f16_saturating(probability).bits, unit);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
