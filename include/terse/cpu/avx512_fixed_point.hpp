/// Packed integer codes with AVX-512 VNNI: integer dot products of codes with fixed-point numbers.
///
/// A query (or probability) vector x becomes integers of 23 bits, x = scale * (65536 h + 256 m + l)
/// with signed bytes h, m and l, and `vpdpbusd` multiplies 64 codes by four such bytes at a time.
/// Two bytes (16 bits) would leave 2e-5 in the output, three leave fp32's own error. Integer sums
/// are exact and so the same in any order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx512_lanes.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// Largest magnitude of a fixed-point number: 65536 h stays within 7 bits, as `split_bytes` needs.
inline constexpr float fixed_top = 4160000.0f;
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

TERSE_INLINE_AVX512 __m512 load_halves(const std::byte* section, int index) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(section + index * 2)));
}
TERSE_INLINE_AVX512 __m512 load_halves(const std::byte* section, int index,
                                       __mmask16 lanes) noexcept {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, section + index * 2));
}

/// Where a group's codes are counted from, in value units: its minimum lifted to the middle.
TERSE_INLINE_AVX512 __m512 middles(const ReadFormat& f, __m512 scale, __m512 minimum) noexcept {
  return _mm512_fmadd_ps(scale, _mm512_set1_ps(f.lift), minimum);
}

/// sum += codes . word, four bytes a lane, the word broadcast by the load port. Written out because
/// compilers prefer a separate broadcast, which takes an execution slot of the dot products.
TERSE_INLINE_AVX512 void dot_word(__m512i& sum, __m512i codes, const float* word) noexcept {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*word));
}

/// Per lane the larger magnitude; a NaN loses (callers find it elsewhere).
TERSE_INLINE_AVX512 __m512 max_magnitude(__m512 a, __m512 b) noexcept {
  return _mm512_range_ps(a, b, 0b1011);
}

/// Four rows' scales and their inverses, from the rows' largest magnitudes.
struct FixedScales {
  alignas(16) float scale[affine_rows];
  alignas(16) float inverse[affine_rows];
};

TERSE_INLINE_AVX512 void set_scales(__m128 peaks, FixedScales* out) noexcept {
  const __m128 top = _mm_set1_ps(fixed_top);
  const __m128 largest = _mm_max_ps(peaks, _mm_set1_ps(fixed_floor));
  _mm_store_ps(out->scale, _mm_mul_ps(largest, _mm_set1_ps(1.0f / fixed_top)));
  _mm_store_ps(out->inverse, _mm_div_ps(top, largest));
}

/// 16 numbers as four groups of 16 bytes, each {l l l l m m m m h h h h 0 0 0 0} of four numbers.
/// `total` gathers the fixed-point numbers themselves, each with `fixed_bias` added.
TERSE_INLINE_AVX512 __m512i split_bytes(__m512 x, __m512 inverse, __m512i* total) noexcept {
  // 1.5 * 2^23 leaves the rounded integer in the low mantissa bits, 0x8080 makes room for the
  // borrows of the signed bytes.
  const __m512 shifted = _mm512_fmadd_ps(x, inverse, _mm512_set1_ps(12582912.0f + 32896.0f));
  const __m512i bits = _mm512_castps_si512(shifted);
  *total = _mm512_add_epi32(*total, bits);
  const __m512i bytes = _mm512_sub_epi8(bits, _mm512_set1_epi32(0x4b408080));
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(bytes, order);
}
inline constexpr std::uint32_t fixed_bias = 0x4b408080u;

/// What a centre takes from a row's sums: `start`, where the middle bytes' sum begins, and `rest`,
/// in units of the row's scale. Together centre * (sum of the fixed-point numbers), exactly.
struct CentreShare {
  int start;
  float rest;
};

/// `total`: the sum of `count` biased numbers, modulo 2^32.
inline CentreShare centre_share(const ReadFormat& f, int total, int count) noexcept {
  const auto sum = static_cast<int>(static_cast<std::uint32_t>(total) -
                                    static_cast<std::uint32_t>(count) * fixed_bias);
  // The centre may be half an integer, so the part that must be an integer is even.
  return {-static_cast<int>(2.0f * f.centre) * (sum >> 9),
          f.centre * static_cast<float>(sum & 511)};
}

/// Shares of R rows whose biased numbers `total` holds lane by lane, `count` in all.
TERSE_INLINE_AVX512 void store_shares(const ReadFormat& f, const __m512i* total, int count,
                                      int rows, CentreShare* shares) noexcept {
  alignas(16) int totals[affine_rows];
  _mm_store_si128(reinterpret_cast<__m128i*>(totals),
                  sum_each(total[0], total[1], total[2], total[3]));
  for (int r = 0; r < rows; ++r) shares[r] = centre_share(f, totals[r], count);
}

/// The sums of the three bytes as one number in units of the row's scale.
TERSE_INLINE_AVX512 __m512 combine(__m512i low, __m512i middle, __m512i high) noexcept {
  const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(high, 8), middle);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(upper), _mm512_set1_ps(256.0f),
                         _mm512_cvtepi32_ps(low));
}

TERSE_INLINE_AVX512 void prefetch(const std::byte* at, std::intptr_t ahead) noexcept {
  const std::intptr_t address = reinterpret_cast<std::intptr_t>(at) + ahead;
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T1);  // NOLINT: never dereferenced
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
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
