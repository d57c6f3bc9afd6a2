/// Codes along a trellis to fp32 with AVX2, bit for bit what the codec's own decode says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cpu/avx2_affine.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx2 {

/// Levels of a trellis, by permutations of registers.
template <int Bits>
struct TrellisTable {
  __m256 levels[4];

  TERSE_INLINE_AVX2 void load(const float (&numbers)[32]) noexcept {
    for (int i = 0; i < 4; ++i) levels[i] = _mm256_loadu_ps(numbers + 8 * i);
  }
  /// Of eight codes; of the bits of the next channel's codes and of those behind them the lowest
  /// count (Trellis::index_of).
  [[nodiscard]] TERSE_INLINE_AVX2 __m256 look_up(__m256i code, __m256i next,
                                                 __m256i second) const noexcept {
    const __m256i lowest = _mm256_set1_epi32(1);
    const __m256i upper = _mm256_xor_si256(code, _mm256_and_si256(second, lowest));
    const __m256i index =
        _mm256_or_si256(_mm256_slli_epi32(upper, 1), _mm256_and_si256(next, lowest));
    // A permutation reads the lowest three bits of a lane, a blend the highest.
    const __m256 x = _mm256_permutevar8x32_ps(levels[0], index);
    if constexpr (Bits <= 2) return x;
    const __m256 bit_3 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    const __m256 y = _mm256_blendv_ps(x, _mm256_permutevar8x32_ps(levels[1], index), bit_3);
    if constexpr (Bits <= 3) return y;
    const __m256 bit_4 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
    const __m256 z = _mm256_blendv_ps(_mm256_permutevar8x32_ps(levels[2], index),
                                      _mm256_permutevar8x32_ps(levels[3], index), bit_3);
    return _mm256_blendv_ps(y, z, bit_4);
  }
};

/// Byte `byte` of every lane of load_codes.
template <int Bits>
TERSE_INLINE_AVX2 __m256i codes_of_byte(__m256i stored, int byte) noexcept {
  return _mm256_and_si256(_mm256_srli_epi32(stored, 8 * byte), _mm256_set1_epi32((1 << Bits) - 1));
}

template <int Bits>
TERSE_TARGET_AVX2 void decode_trellis_keys(int width, const std::byte* codes,
                                           const float (&levels)[32],
                                           const float (&scales)[block_tokens], float* out) {
  constexpr int span = codes_per_lane(Bits);
  TrellisTable<Bits> table;
  table.load(levels);
  for (int t = 0; t < block_tokens; t += 8) {
    const __m256 scale = _mm256_loadu_ps(scales + t);
    __m256i next = _mm256_setzero_si256(), second = next;
    for (int c = width - 1; c >= 0; --c) {
      const int vector = bundle_vector(Bits, Side::key, width, t / 16, c / span);
      const __m256i stored =
          load_codes<Bits>(codes + vector * 64 + t % 16 * 4, field_of<Bits>(t / 16, c % span / 4));
      const __m256i code = codes_of_byte<Bits>(stored, lane_byte(c % 4));
      _mm256_storeu_ps(out + static_cast<std::ptrdiff_t>(c) * block_tokens + t,
                       _mm256_mul_ps(table.look_up(code, next, second), scale));
      second = next;
      next = code;
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX2 void decode_trellis_values(int width, const std::byte* codes,
                                             const float (&levels)[32],
                                             const float (&scales)[block_tokens], float* out) {
  constexpr int fields = codes_per_lane(Bits) / 4;
  TrellisTable<Bits> table;
  table.load(levels);
  const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i by_one = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0);
  const __m256i by_two = _mm256_setr_epi32(2, 3, 4, 5, 6, 7, 0, 1);
  for (int t = 0; t < block_tokens; ++t) {
    const int run = t / (16 * fields) * 4 + t % 16 / 4;
    const __m256 scale = _mm256_broadcast_ss(scales + t);
    __m256i behind = _mm256_setzero_si256();  // codes of the next eight channels
    for (int c = (width - 1) / 8 * 8; c >= 0; c -= 8) {
      const int vector = bundle_vector(Bits, Side::value, width, c / 16, run);
      const __m256i stored = load_codes<Bits>(codes + vector * 64 + c % 16 * 4,
                                              field_of<Bits>(c / 16, t / 16 % fields));
      // Places beyond the width may hold anything.
      const __m256i exists = _mm256_cmpgt_epi32(_mm256_set1_epi32(width - c), places);
      const __m256i code = _mm256_and_si256(codes_of_byte<Bits>(stored, lane_byte(t % 4)), exists);
      const __m256i next = _mm256_permutevar8x32_epi32(_mm256_blend_epi32(code, behind, 1), by_one);
      const __m256i second =
          _mm256_permutevar8x32_epi32(_mm256_blend_epi32(code, behind, 3), by_two);
      _mm256_maskstore_ps(out + static_cast<std::ptrdiff_t>(t) * width + c, exists,
                          _mm256_mul_ps(table.look_up(code, next, second), scale));
      behind = code;
    }
  }
}

TERSE_TARGET_AVX2 inline void decode_trellis(int bits, Side side, int width, const std::byte* codes,
                                             const float (&levels)[32],
                                             const float (&scales)[block_tokens], float* out) {
  const bool is_key = side == Side::key;
  switch (bits) {
    case 1:
      return is_key ? decode_trellis_keys<1>(width, codes, levels, scales, out)
                    : decode_trellis_values<1>(width, codes, levels, scales, out);
    case 2:
      return is_key ? decode_trellis_keys<2>(width, codes, levels, scales, out)
                    : decode_trellis_values<2>(width, codes, levels, scales, out);
    case 3:
      return is_key ? decode_trellis_keys<3>(width, codes, levels, scales, out)
                    : decode_trellis_values<3>(width, codes, levels, scales, out);
    default:
      return is_key ? decode_trellis_keys<4>(width, codes, levels, scales, out)
                    : decode_trellis_values<4>(width, codes, levels, scales, out);
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
