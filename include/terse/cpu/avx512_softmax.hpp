/// Softmax of blocks with AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx512_lanes.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// 2^(i / 16).
alignas(64) inline constexpr float sixteenth_powers[16] = {
    1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
    1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
    1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
inline constexpr float sixteenths_per_e = 23.0831203f;    // 16 / ln(2)
inline constexpr float sixteenth_high = 4.33216989e-2f;   // ln(2) / 16
inline constexpr float sixteenth_low = -1.19040895e-10f;  // the rest of it
/// Below this, exp(x) is no normal number of fp32 and becomes 0.
inline constexpr float exp_zero = -87.3f;

/// exp(x) for x <= 0, relative error below 2e-7; 0 below exp_zero, NaN for NaN.
///
/// With n sixteenths of a power of two: 2^(n / 16) from a table, a cubic for the rest, whose error
/// is below 1e-8.
TERSE_INLINE_AVX512 __m512 exp_nonpositive(__m512 x) noexcept {
  // 1.5 * 2^23: the rounded n lies in the low mantissa bits.
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(sixteenths_per_e), magic);
  const __m512 n = _mm512_sub_ps(shifted, magic);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(sixteenth_high), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(sixteenth_low), r);
  const __m512i bits = _mm512_castps_si512(shifted);
  const __m512 root = _mm512_permutexvar_ps(bits, _mm512_load_ps(sixteenth_powers));
  const __m512 curve = _mm512_fmadd_ps(r, _mm512_set1_ps(1.0f / 6.0f), _mm512_set1_ps(0.5f));
  const __m512 rest = _mm512_fmadd_ps(_mm512_mul_ps(r, r), curve, r);
  const __m512 y = _mm512_fmadd_ps(root, rest, root);
  const __m512i power = _mm512_and_si512(_mm512_slli_epi32(bits, 19),
                                         _mm512_set1_epi32(static_cast<int>(0xff800000u)));
  // Not "x >= exp_zero": NaN stays.
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(exp_zero), _CMP_NLT_UQ);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(counts, _mm512_castps_si512(y), power));
}

TERSE_TARGET_AVX512 inline void soft_cap(float* x, int count, float cap) {
  const __m512 inverse = _mm512_set1_ps(1.0f / cap), one = _mm512_set1_ps(1.0f);
  const __m512 sign = _mm512_set1_ps(-0.0f);
  for (int i = 0; i < count; i += 16) {
    const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x + i), inverse);
    const __m512 size = _mm512_andnot_ps(sign, y), square = _mm512_mul_ps(y, y);
    const __m512 e = exp_nonpositive(_mm512_mul_ps(size, _mm512_set1_ps(-2.0f)));
    const __m512 far = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    __m512 near = _mm512_set1_ps(tanh_series[3]);
    TERSE_UNROLL
    for (int k = 2; k >= 0; --k) {
      near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(tanh_series[k]));
    }
    near = _mm512_fmadd_ps(_mm512_mul_ps(near, square), size, size);
    const __mmask16 is_near = _mm512_cmp_ps_mask(size, _mm512_set1_ps(tanh_near), _CMP_LT_OQ);
    const __m512 t = _mm512_mask_mov_ps(far, is_near, near);
    _mm512_storeu_ps(x + i,
                     _mm512_mul_ps(_mm512_or_ps(t, _mm512_and_ps(y, sign)), _mm512_set1_ps(cap)));
  }
}

TERSE_TARGET_AVX512 inline void scale(float* x, int count, float factor) {
  const __m512 f = _mm512_set1_ps(factor);
  int i = 0;
  for (; i + 16 <= count; i += 16) {
    _mm512_storeu_ps(x + i, _mm512_mul_ps(f, _mm512_loadu_ps(x + i)));
  }
  for (; i < count; ++i) x[i] *= factor;
}

/// Softmax of R <= 4 rows at once, so that their reductions and exponentials overlap.
template <int R>
TERSE_TARGET_AVX512 void softmax_tile(float* scores, std::uint64_t mask, SoftmaxState* states,
                                      float* factors) noexcept {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 x[R][4], peak[4];
  TERSE_UNROLL
  for (int r = 0; r < 4; ++r) peak[r] = lowest;
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < 4; ++v) {
      // Tokens outside the mask are at -infinity: their exp is 0.
      x[r][v] = _mm512_mask_loadu_ps(lowest, static_cast<__mmask16>(mask >> (16 * v)),
                                     scores + r * block_tokens + 16 * v);
    }
    peak[r] = _mm512_max_ps(_mm512_max_ps(x[r][0], x[r][1]), _mm512_max_ps(x[r][2], x[r][3]));
  }
  alignas(16) float old_max[4] = {}, old_sum[4] = {};
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    old_max[r] = states[r].max;
    old_sum[r] = states[r].sum;
  }
  const __m128 before = _mm_load_ps(old_max);
  const __m128 maximum = _mm_max_ps(before, max_each(peak[0], peak[1], peak[2], peak[3]));
  // Where every logit so far excludes its token, 0 takes the place of the maximum: exp(-inf) = 0.
  const __m128 nothing = _mm_set1_ps(-__builtin_inff());
  const __m128 reference =
      _mm_mask_mov_ps(maximum, _mm_cmp_ps_mask(maximum, nothing, _CMP_EQ_OQ), _mm_setzero_ps());
  const __m128 unchanged_one = _mm_set1_ps(1.0f);
  const __mmask8 unchanged = _mm_cmp_ps_mask(maximum, before, _CMP_EQ_OQ);
  __m128 factor = unchanged_one;
  if ((unchanged & ((1 << R) - 1)) != (1 << R) - 1) {
    const __m128 power = _mm512_castps512_ps128(
        exp_nonpositive(_mm512_castps128_ps512(_mm_sub_ps(before, reference))));
    factor = _mm_mask_mov_ps(power, unchanged, unchanged_one);
  }
  __m512 sum[4];
  alignas(16) float references[4];
  _mm_store_ps(references, reference);
  TERSE_UNROLL
  for (int r = 0; r < 4; ++r) sum[r] = _mm512_setzero_ps();
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < 4; ++v) {
      x[r][v] = exp_nonpositive(_mm512_sub_ps(x[r][v], _mm512_set1_ps(references[r])));
      _mm512_storeu_ps(scores + r * block_tokens + 16 * v, x[r][v]);
    }
    sum[r] = _mm512_add_ps(_mm512_add_ps(x[r][0], x[r][1]), _mm512_add_ps(x[r][2], x[r][3]));
  }
  alignas(16) float new_max[4], new_sum[4], new_factor[4];
  _mm_store_ps(new_max, maximum);
  _mm_store_ps(new_factor, factor);
  _mm_store_ps(new_sum, _mm_fmadd_ps(_mm_load_ps(old_sum), factor,
                                     sum_each(sum[0], sum[1], sum[2], sum[3])));
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    states[r] = {new_max[r], new_sum[r]};
    factors[r] = new_factor[r];
  }
}

TERSE_TARGET_AVX512 inline float softmax_block(float* scores, std::uint64_t mask,
                                               SoftmaxState* state) {
  float factor;
  softmax_tile<1>(scores, mask, state, &factor);
  return factor;
}

TERSE_TARGET_AVX512 inline void softmax_rows(float* scores, int rows, std::uint64_t mask,
                                             SoftmaxState* states, int width, float* accumulators) {
  for (int row = 0; row < rows; row += 4) {
    float* s = scores + static_cast<std::ptrdiff_t>(row) * block_tokens;
    float factors[4];
    const int count = rows - row < 4 ? rows - row : 4;
    switch (count) {
      case 1:
        softmax_tile<1>(s, mask, states + row, factors);
        break;
      case 2:
        softmax_tile<2>(s, mask, states + row, factors);
        break;
      case 3:
        softmax_tile<3>(s, mask, states + row, factors);
        break;
      default:
        softmax_tile<4>(s, mask, states + row, factors);
        break;
    }
    for (int r = 0; r < count; ++r) {
      if (factors[r] == 1.0f) continue;
      scale(accumulators + static_cast<std::ptrdiff_t>(row + r) * width, width, factors[r]);
    }
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
