/// Packed records to fp32 with AVX-512, bit for bit what the codec's own decode says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx512_codes.hpp"
#include "terse/cpu/avx512_fixed_point.hpp"
#include "terse/cpu/portable.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// Code `field` in byte `byte` of every 32-bit lane, less the centre.
template <int Bits>
TERSE_INLINE_AVX512 __m512 centred_codes(const std::byte* bundle, int byte, int field,
                                         float centre) noexcept {
  const __m512i codes =
      _mm512_srl_epi32(stored_codes<Bits>(bundle, field), _mm_cvtsi32_si128(8 * byte));
  const __m512i code = _mm512_and_si512(codes, _mm512_set1_epi32((1 << Bits) - 1));
  return _mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(centre));
}

template <int Bits>
TERSE_TARGET_AVX512 void decode_keys(const AffineFormat& f, int width, const AffineParts& parts,
                                     float* out) noexcept {
  constexpr int span = codes_per_lane(Bits);
  const bool per_channel = f.granularity == Granularity::per_channel;
  for (int c = 0; c < width; ++c) {
    for (int t = 0; t < block_tokens; t += 16) {
      const std::byte* bundle =
          parts.codes + bundle_vector(Bits, Side::key, width, t / 16, c / span) * 64;
      const int field = field_of<Bits>(t / 16, c % span / 4);
      const __m512 x = centred_codes<Bits>(bundle, lane_byte(c % 4), field, f.centre);
      const int at = affine_param_index(f, width, t, c);
      const __m512 scale = per_channel ? _mm512_set1_ps(terse::detail::load_half(parts.scales, at))
                                       : load_halves(parts.scales, at);
      __m512 y;
      if (f.has_min) {
        const __m512 minimum = per_channel
                                   ? _mm512_set1_ps(terse::detail::load_half(parts.minima, at))
                                   : load_halves(parts.minima, at);
        y = _mm512_fmadd_ps(x, scale, minimum);
      } else {
        y = _mm512_mul_ps(x, scale);
      }
      _mm512_storeu_ps(out + static_cast<std::ptrdiff_t>(c) * block_tokens + t, y);
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX512 void decode_values(const AffineFormat& f, int width, const AffineParts& parts,
                                       float* out) noexcept {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const bool per_channel = f.granularity == Granularity::per_channel;
  for (int t = 0; t < block_tokens; ++t) {
    const int run = t / (16 * fields) * 4 + t % 16 / 4;
    for (int c = 0; c < width; c += 16) {
      const __mmask16 lanes = first_lanes(width - c);
      const std::byte* bundle =
          parts.codes + bundle_vector(Bits, Side::value, width, c / 16, run) * 64;
      const int field = field_of<Bits>(c / 16, t / 16 % fields);
      const __m512 x = centred_codes<Bits>(bundle, lane_byte(t % 4), field, f.centre);
      const int at = affine_param_index(f, width, t, c);
      const __m512 scale = per_channel ? load_halves(parts.scales, at, lanes)
                                       : _mm512_set1_ps(terse::detail::load_half(parts.scales, at));
      __m512 y;
      if (f.has_min) {
        const __m512 minimum = per_channel
                                   ? load_halves(parts.minima, at, lanes)
                                   : _mm512_set1_ps(terse::detail::load_half(parts.minima, at));
        y = _mm512_fmadd_ps(x, scale, minimum);
      } else {
        y = _mm512_mul_ps(x, scale);
      }
      _mm512_mask_storeu_ps(out + static_cast<std::ptrdiff_t>(t) * width + c, lanes, y);
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX512 void decode_bits(const AffineFormat& f, Side side, int width,
                                     const AffineParts& parts, float* out) noexcept {
  if (side == Side::key) {
    decode_keys<Bits>(f, width, parts, out);
  } else {
    decode_values<Bits>(f, width, parts, out);
  }
}

TERSE_TARGET_AVX512 inline void decode_affine(const AffineFormat& f, Side side, int width,
                                              const std::byte* record, float* out) {
  if (!covers_affine(f, side, width)) return portable::decode_affine(f, side, width, record, out);
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

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
