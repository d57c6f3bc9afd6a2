/// Packed integer codes with AVX-512 VNNI: integer dot products of codes with fixed-point numbers.
///
/// A query (or probability) vector x becomes integers of 24 bits, x = scale * (65536 h + 256 m + l)
/// with signed bytes h, m and l, and `vpdpbusd` multiplies 64 codes by four such bytes at a time.
/// Two bytes (16 bits) would leave 2e-5 in the output, three leave fp32's own error. Integer sums are
/// exact, so centres are subtracted exactly.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse::cpu {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace avx512 {
TERSE_BEGIN_AVX512

/// Largest magnitude of a 24-bit number; three signed bytes reach 127 * (65536 + 256 + 1), and
/// rounding may exceed this by one.
inline constexpr float fixed_top = 8355584.0f;
/// Smaller vectors lose bits instead of overflowing 1 / scale.
inline constexpr float fixed_floor = 1e-30f;
/// Rows of one pass and channels of one integer sum. 255 * 127 * 256 * 257 < 2^31.
inline constexpr int affine_rows = 4;
inline constexpr int chunk_channels = 256;

/// Channels of `width` that share one integer sum: within a scale group, at most 256.
inline int chunk_size(const AffineFormat& f, int width, int begin) noexcept {
  const bool grouped = f.granularity == Granularity::per_token && f.group != 0;
  int end = grouped ? (begin / f.group + 1) * f.group : width;
  if (end > width) end = width;
  return end - begin < chunk_channels ? end - begin : chunk_channels;
}

inline int count_chunks(const AffineFormat& f, int width) noexcept {
  int chunks = 0;
  for (int c = 0; c < width; c += chunk_size(f, width, c)) ++chunks;
  return chunks;
}

/// Whether scale groups align with the vectors of the codes; if not, portable code serves.
inline bool covers(const AffineFormat& f, Side side, int width) noexcept {
  if (f.granularity == Granularity::per_channel) return f.group % 16 == 0;
  return f.group == 0 || f.group >= width || f.group % (side == Side::key ? 4 : 16) == 0;
}

/// 2 * centre, an integer for every codec; kept doubled where codes are narrow enough.
inline int twice_centre(const AffineFormat& f) noexcept { return static_cast<int>(2 * f.centre); }

TERSE_INLINE_AVX512 __mmask16 first_lanes(int count) noexcept {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
}

TERSE_INLINE_AVX512 __m512 load_halves(const std::byte* section, int index,
                                       __mmask16 mask = 0xffff) noexcept {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, section + index * 2));
}

/// One 32-bit word in all lanes, by the load port (a float, so that it takes no general register).
TERSE_INLINE_AVX512 __m512i broadcast(const float* word) noexcept {
  return _mm512_castps_si512(_mm512_set1_ps(*word));
}

/// Magnitudes as integers: they compare alike, and NaN is the largest.
TERSE_INLINE_AVX512 __m512i max_magnitude(__m512i peak, __m512 x) noexcept {
  return _mm512_max_epi32(peak, _mm512_and_si512(_mm512_castps_si512(x),
                                                 _mm512_set1_epi32(0x7fffffff)));
}

struct FixedScale {
  float scale;
  float inverse;
};

TERSE_INLINE_AVX512 FixedScale fixed_scale(__m512i peak) noexcept {
  const int bits = _mm512_reduce_max_epi32(
      _mm512_max_epi32(peak, _mm512_castps_si512(_mm512_set1_ps(fixed_floor))));
  const float largest = __builtin_bit_cast(float, bits);
  return {largest * (1.0f / fixed_top), fixed_top / largest};
}

/// 16 numbers as four groups of 16 bytes, each {l l l l m m m m h h h h 0 0 0 0} of four numbers.
TERSE_INLINE_AVX512 __m512i split_bytes(__m512 x, __m512 inverse) noexcept {
  const __m512i bias = _mm512_set1_epi32(0x00808080);
  const __m512i fixed = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
  const __m512i biased = _mm512_xor_si512(_mm512_add_epi32(fixed, bias), bias);
  const __m512i order = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(biased, order);
}

/// What the centre takes from integer sums: of 65536 h + 256 m in units of 256, and of l.
struct CentreShare {
  int high;
  int low;
};

/// `sums`: byte sums {l, m, h, 0}, four times.
TERSE_INLINE_AVX512 CentreShare centre_share(__m512i sums, int centre) noexcept {
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums),
                                        _mm512_extracti64x4_epi64(sums, 1));
  const __m128i all = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const int low = _mm_cvtsi128_si32(all);
  const int middle = _mm_extract_epi32(all, 1);
  const int high = _mm_extract_epi32(all, 2);
  return {centre * (high * 256 + middle), centre * low};
}

/// Integer sums of the three bytes, less the centre's share, as one number in units of the row's
/// scale. Narrow codes count in halves, because their centre may be half an integer.
template <int Bits>
TERSE_INLINE_AVX512 __m512 combine(const __m512i* sums, CentreShare centre) noexcept {
  constexpr int doubled = Bits == 8 ? 0 : 1;
  const __m512i upper =
      _mm512_add_epi32(_mm512_slli_epi32(sums[2], 8 + doubled), _mm512_slli_epi32(sums[1], doubled));
  const __m512i lower = _mm512_slli_epi32(sums[0], doubled);
  const __m512 high =
      _mm512_cvtepi32_ps(_mm512_sub_epi32(upper, _mm512_set1_epi32(centre.high)));
  const __m512 low = _mm512_cvtepi32_ps(_mm512_sub_epi32(lower, _mm512_set1_epi32(centre.low)));
  return _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), low);
}

template <int Bits>
inline constexpr float unit = Bits == 8 ? 1.0f : 0.5f;

inline int stored_centre(const AffineFormat& f) noexcept {
  return f.bits == 8 ? static_cast<int>(f.centre) : static_cast<int>(2.0f * f.centre);
}

TERSE_INLINE_AVX512 void prefetch(const std::byte* at, std::intptr_t ahead) noexcept {
  const std::intptr_t address = reinterpret_cast<std::intptr_t>(at) + ahead;
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);  // NOLINT: never dereferenced
}

/// Bytes from `record` to `next`. Without a hint, what is prefetched is what is being read.
inline std::intptr_t distance(const std::byte* record, const std::byte* next) noexcept {
  if (next == nullptr) return 0;
  return reinterpret_cast<std::intptr_t>(next) - reinterpret_cast<std::intptr_t>(record);
}

/// Hints for the parameters of the next record; its codes are asked for while these are read.
TERSE_INLINE_AVX512 void prefetch_parameters(const AffineParts& parts,
                                             std::intptr_t ahead) noexcept {
  const std::byte* end = parts.codes + parts.bytes;
  for (const std::byte* p = parts.scales; p < end; p += 64) {
    prefetch(p, ahead);
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse::cpu

#endif
