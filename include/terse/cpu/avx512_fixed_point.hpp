/// Packed integer codes with AVX-512 VNNI: integer dot products of codes with fixed-point numbers.
///
/// A query (or probability) vector x becomes integers of 23 bits, x = scale * (65536 h + 256 m + l)
/// with signed bytes h, m and l, and `vpdpbusd` multiplies 64 codes by four such bytes at a time.
/// Two bytes (16 bits) would leave 2e-5 in the output, three leave fp32's own error. Integer sums
/// are exact and so the same in any order.
///
/// Codes of 4 bits lie in pairs, so a byte is code + 16 * partner. One product with whole bytes
/// takes a low byte z to both: z meets the code, 16 z its partner. Its upper half serves the former
/// and its lower half the latter, which leaves 19 bits of each number for two and a half products.
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

/// How a fixed-point number is cut into the words of dot products.
enum class Digits {
  three,   ///< l, m and h of every number
  shared,  ///< m and h of every number, and a low byte for each pair of 4-bit codes
};

/// Largest magnitude of a fixed-point number: with its offsets it stays within 23 bits of a
/// mantissa, or within three signed bytes. 256 of them sum up to less than 2^31.
template <Digits D>
inline constexpr float fixed_top = D == Digits::three ? 4159000.0f : 8300000.0f;
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

TERSE_INLINE_AVX512 __m512 load_halves(const std::byte* section, int index) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(section + index * 2)));
}
TERSE_INLINE_AVX512 __m512 load_halves(const std::byte* section, int index,
                                       __mmask16 lanes) noexcept {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, section + index * 2));
}

/// sum += codes . word, four bytes a lane, the word broadcast by the load port. Written out because
/// compilers prefer a separate broadcast, which takes an execution slot of the dot products.
TERSE_INLINE_AVX512 void dot_word(__m512i& sum, __m512i codes, const float* word) noexcept {
  asm volatile("vpdpbusd {%2%{1to16%}, %1, %0|%0, %1, %2%{1to16%}}"
               : "+v"(sum)
               : "v"(codes), "m"(*word));
}

/// Two vectors' sums += codes . the same word, which is loaded once instead of once a product.
TERSE_INLINE_AVX512 void dot_word(__m512i& sum_a, __m512i codes_a, __m512i& sum_b, __m512i codes_b,
                                  const float* word) noexcept {
  __m512i all;
  asm volatile("vpbroadcastd {%1, %0|%0, %1}" : "=v"(all) : "m"(*word));
  asm volatile("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(sum_a) : "v"(codes_a), "v"(all));
  asm volatile("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(sum_b) : "v"(codes_b), "v"(all));
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

template <Digits D>
TERSE_INLINE_AVX512 void set_scales(__m128 peaks, FixedScales* out) noexcept {
  const __m128 top = _mm_set1_ps(fixed_top<D>);
  const __m128 largest = _mm_max_ps(peaks, _mm_set1_ps(fixed_floor));
  _mm_store_ps(out->scale, _mm_mul_ps(largest, _mm_set1_ps(1.0f / fixed_top<D>)));
  _mm_store_ps(out->inverse, _mm_div_ps(top, largest));
}

/// Four numbers' bytes side by side, in the order of lane_byte: words of l, m, h and nothing.
TERSE_INLINE_AVX512 __m512i gather_digits(__m512i numbers) noexcept {
  return _mm512_shuffle_epi8(numbers, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                          0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15)));
}

/// Offsets of the bytes make room for the borrows of signed digits; a partner's also takes that of
/// the low byte it shares.
inline constexpr std::uint32_t first_offset = 0x8080u, partner_offset = 0x8800u;
/// x * inverse + 1.5 * 2^23 has the rounded product in its low mantissa bits.
inline constexpr float fixed_magic = 12582912.0f;
inline constexpr std::uint32_t fixed_magic_bits = 0x4b400000u;

/// Digits::three of 16 numbers: four words for each four. `total` gathers the numbers themselves,
/// each with fixed_magic_bits and first_offset added.
TERSE_INLINE_AVX512 __m512i split_three(__m512 x, __m512 inverse, __m512i* total) noexcept {
  const __m512i bits = _mm512_castps_si512(
      _mm512_fmadd_ps(x, inverse, _mm512_set1_ps(fixed_magic + static_cast<float>(first_offset))));
  *total = _mm512_add_epi32(*total, bits);
  return gather_digits(
      _mm512_sub_epi8(bits, _mm512_set1_epi32(static_cast<int>(fixed_magic_bits | first_offset))));
}

struct SharedDigits {
  __m512i first, partner;  ///< words as split_three's; the low byte that both share lies with first
};

/// Digits::shared of 16 numbers and their partners. `total` gathers what the digits stand for, with
/// first_offset and partner_offset added. Numbers are twice as large as those of split_three: they
/// need not fit a mantissa.
TERSE_INLINE_AVX512 SharedDigits split_shared(__m512 x, __m512 y, __m512 inverse,
                                              __m512i* total) noexcept {
  const __m512i half_byte = _mm512_set1_epi32(15);
  // Both round to 16, and a partner gives up 8 * 256 with the offset of z.
  const __m512i partner = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(y, inverse)),
                                           _mm512_set1_epi32(static_cast<int>(partner_offset) + 8));
  const __m512i first = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)),
                                         _mm512_set1_epi32(static_cast<int>(first_offset) + 8));
  const __m512i lower = _mm512_and_si512(_mm512_srli_epi32(partner, 4), half_byte);
  const __m512i rounded = _mm512_sub_epi32(first, lower);
  // Times 16, the upper half of z is a multiple of 256: the partner's m gives it up.
  const __m512i upper = _mm512_and_si512(_mm512_slli_epi32(rounded, 4), _mm512_set1_epi32(0xf00));
  const __m512i taken = _mm512_sub_epi32(partner, upper);
  const __m512i digits = _mm512_ternarylogic_epi32(half_byte, lower, rounded, 0xca);
  *total =
      _mm512_add_epi32(*total, _mm512_add_epi32(digits, _mm512_andnot_si512(half_byte, partner)));
  const __m512i offsets = _mm512_set1_epi32(static_cast<int>(first_offset));
  return {gather_digits(_mm512_sub_epi8(digits, offsets)),
          gather_digits(_mm512_sub_epi8(taken, offsets))};
}

/// What a centre takes from a row's sums: `start`, where the middle bytes' sum begins, and `rest`,
/// in units of the row's scale. Together centre * (sum of the fixed-point numbers), exactly.
struct CentreShare {
  int start;
  float rest;
};

/// Shares of `rows` rows whose numbers `total` holds lane by lane, `count` (a multiple of 16) in
/// all.
template <Digits D>
TERSE_INLINE_AVX512 void store_shares(float centre, const __m512i* total, int count, int rows,
                                      CentreShare* shares) noexcept {
  constexpr std::uint32_t pair =
      D == Digits::shared ? first_offset + partner_offset : 2 * (fixed_magic_bits + first_offset);
  alignas(16) std::uint32_t totals[affine_rows];
  _mm_store_si128(reinterpret_cast<__m128i*>(totals),
                  sum_each(total[0], total[1], total[2], total[3]));
  for (int r = 0; r < rows; ++r) {
    const auto sum = static_cast<int>(totals[r] - static_cast<std::uint32_t>(count / 2) * pair);
    // The centre may be half an integer, so the part that must be an integer is even.
    shares[r] = {-static_cast<int>(2.0f * centre) * (sum >> 9),
                 centre * static_cast<float>(sum & 511)};
  }
}

/// The sums of the three bytes as one number in units of the row's scale.
TERSE_INLINE_AVX512 __m512 combine(__m512i low, __m512i middle, __m512i high) noexcept {
  const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(high, 8), middle);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(upper), _mm512_set1_ps(256.0f),
                         _mm512_cvtepi32_ps(low));
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
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
