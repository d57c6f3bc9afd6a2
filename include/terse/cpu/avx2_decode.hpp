/// Packed records to fp32 with AVX2, bit for bit what the codec's own decode says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx2_affine.hpp"
#include "terse/cpu/portable.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx2 {

/// 8 decoded numbers whose parameters lie side by side from `at` on, or are the one at `at`.
TERSE_INLINE_AVX2 __m256 apply_scale(const AffineFormat& f, const AffineParts& parts, __m256 x,
                                     int at, bool side_by_side) noexcept {
  const __m256 scale = side_by_side ? load_halves(parts.scales, at)
                                    : _mm256_set1_ps(terse::detail::load_half(parts.scales, at));
  if (!f.has_min) return _mm256_mul_ps(x, scale);
  const __m256 minimum = side_by_side ? load_halves(parts.minima, at)
                                      : _mm256_set1_ps(terse::detail::load_half(parts.minima, at));
  return _mm256_fmadd_ps(x, scale, minimum);
}

template <int Bits>
TERSE_TARGET_AVX2 void decode_keys(const AffineFormat& f, int width, const AffineParts& parts,
                                   float* out) {
  constexpr int span = codes_per_lane(Bits);
  const __m256 centre = _mm256_set1_ps(f.centre);
  for (int c = 0; c < width; ++c) {
    for (int t = 0; t < block_tokens; t += 8) {
      const int vector = bundle_vector(Bits, Side::key, width, t / 16, c / span);
      const __m256i stored = load_codes<Bits>(parts.codes + vector * 64 + t % 16 * 4,
                                              field_of<Bits>(t / 16, c % span / 4));
      const __m256 x = centred_codes<Bits>(stored, lane_byte(c % 4), centre);
      _mm256_storeu_ps(out + static_cast<std::ptrdiff_t>(c) * block_tokens + t,
                       apply_scale(f, parts, x, affine_param_index(f, width, t, c),
                                   f.granularity == Granularity::per_token));
    }
  }
}

/// Values with scales per token: all channels of a token have one scale, or one per 16 or more.
template <int Bits>
TERSE_TARGET_AVX2 void decode_values(const AffineFormat& f, int width, const AffineParts& parts,
                                     float* out) {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const __m256 centre = _mm256_set1_ps(f.centre);
  for (int t = 0; t < block_tokens; ++t) {
    const int run = t / (16 * fields) * 4 + t % 16 / 4;
    for (int c = 0; c < width; c += 8) {
      const int vector = bundle_vector(Bits, Side::value, width, c / 16, run);
      const __m256i stored = load_codes<Bits>(parts.codes + vector * 64 + c % 16 * 4,
                                              field_of<Bits>(c / 16, t / 16 % fields));
      const __m256 y = apply_scale(f, parts, centred_codes<Bits>(stored, lane_byte(t % 4), centre),
                                   affine_param_index(f, width, t, c), false);
      float* to = out + static_cast<std::ptrdiff_t>(t) * width + c;
      if (width - c >= 8) {
        _mm256_storeu_ps(to, y);
      } else {
        alignas(32) float lanes[8];
        _mm256_store_ps(lanes, y);
        for (int i = 0; i < width - c; ++i) to[i] = lanes[i];
      }
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX2 void decode_bits(const AffineFormat& f, Side side, int width,
                                   const AffineParts& parts, float* out) {
  if (side == Side::key) {
    decode_keys<Bits>(f, width, parts, out);
  } else {
    decode_values<Bits>(f, width, parts, out);
  }
}

TERSE_TARGET_AVX2 inline void decode_affine(const AffineFormat& f, Side side, int width,
                                            const std::byte* record, float* out) {
  const bool per_channel = f.granularity == Granularity::per_channel;
  if (!covers_affine(f, side, width) || (side == Side::value && per_channel)) {
    return portable::decode_affine(f, side, width, record, out);
  }
  const AffineParts parts(f, side, width, record);
  switch (f.bits) {
    case 1:
      return decode_bits<1>(f, side, width, parts, out);
    case 2:
      return decode_bits<2>(f, side, width, parts, out);
    case 3:
      return decode_bits<3>(f, side, width, parts, out);
    case 4:
      return decode_bits<4>(f, side, width, parts, out);
    default:
      return decode_bits<8>(f, side, width, parts, out);
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
