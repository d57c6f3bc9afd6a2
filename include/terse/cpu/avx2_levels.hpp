/// Codes of a table of levels to fp32 with AVX2, bit for bit what the codec's own decode says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx2_affine.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx2 {

/// Levels of codes in the low bits of each lane, by permutations of registers.
template <int Bits>
struct LevelTable {
  __m256 low, high;

  TERSE_INLINE_AVX2 void load(const float (&levels)[16]) noexcept {
    low = _mm256_loadu_ps(levels);
    high = _mm256_loadu_ps(levels + 8);
  }
  /// Of byte `byte` of every lane of load_codes.
  [[nodiscard]] TERSE_INLINE_AVX2 __m256 look_up(__m256i stored, int byte) const noexcept {
    // A permutation reads the lowest three bits of a lane, a blend the highest.
    __m256i code = _mm256_srli_epi32(stored, 8 * byte);
    if constexpr (Bits == 2) code = _mm256_and_si256(code, _mm256_set1_epi32(3));
    const __m256 x = _mm256_permutevar8x32_ps(low, code);
    if constexpr (Bits < 4) return x;
    const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    return _mm256_blendv_ps(x, _mm256_permutevar8x32_ps(high, code), is_high);
  }
};

template <int Bits>
TERSE_TARGET_AVX2 void decode_level_keys(int width, const std::byte* codes,
                                         const float (&levels)[16],
                                         const float (&scales)[block_tokens], int begin, int end,
                                         float* out) {
  constexpr int span = codes_per_lane(Bits);
  LevelTable<Bits> table;
  table.load(levels);
  for (int c = begin; c < end; ++c) {
    for (int t = 0; t < block_tokens; t += 8) {
      const int vector = bundle_vector(Bits, Side::key, width, t / 16, c / span);
      const __m256i stored =
          load_codes<Bits>(codes + vector * 64 + t % 16 * 4, field_of<Bits>(t / 16, c % span / 4));
      _mm256_storeu_ps(
          out + static_cast<std::ptrdiff_t>(c) * block_tokens + t,
          _mm256_mul_ps(table.look_up(stored, lane_byte(c % 4)), _mm256_loadu_ps(scales + t)));
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX2 void decode_level_values(int width, const std::byte* codes,
                                           const float (&levels)[16],
                                           const float (&scales)[block_tokens], int begin, int end,
                                           float* out) {
  constexpr int fields = codes_per_lane(Bits) / 4;
  LevelTable<Bits> table;
  table.load(levels);
  for (int t = 0; t < block_tokens; ++t) {
    const int run = t / (16 * fields) * 4 + t % 16 / 4;
    const __m256 scale = _mm256_broadcast_ss(scales + t);
    for (int c = begin; c < end; c += 8) {
      const int vector = bundle_vector(Bits, Side::value, width, c / 16, run);
      const __m256i stored = load_codes<Bits>(codes + vector * 64 + c % 16 * 4,
                                              field_of<Bits>(c / 16, t / 16 % fields));
      const __m256 y = _mm256_mul_ps(table.look_up(stored, lane_byte(t % 4)), scale);
      float* to = out + static_cast<std::ptrdiff_t>(t) * width + c;
      if (end - c >= 8) {
        _mm256_storeu_ps(to, y);
      } else {
        alignas(32) float lanes[8];
        _mm256_store_ps(lanes, y);
        for (int i = 0; i < end - c; ++i) to[i] = lanes[i];
      }
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX2 void decode_level_bits(Side side, int width, const std::byte* codes,
                                         const float (&levels)[16],
                                         const float (&scales)[block_tokens], int begin, int end,
                                         float* out) {
  if (side == Side::key) {
    decode_level_keys<Bits>(width, codes, levels, scales, begin, end, out);
  } else {
    decode_level_values<Bits>(width, codes, levels, scales, begin, end, out);
  }
}

TERSE_TARGET_AVX2 inline void decode_levels(int bits, Side side, int width, const std::byte* codes,
                                            const float (&levels)[16],
                                            const float (&scales)[block_tokens], int begin, int end,
                                            float* out) {
  switch (bits) {
    case 2:
      return decode_level_bits<2>(side, width, codes, levels, scales, begin, end, out);
    case 3:
      return decode_level_bits<3>(side, width, codes, levels, scales, begin, end, out);
    default:
      return decode_level_bits<4>(side, width, codes, levels, scales, begin, end, out);
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
