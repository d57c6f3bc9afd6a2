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

/// exp(x) for x <= 0, relative error below 2e-7; 0 for -infinity, NaN for NaN.
TERSE_INLINE_AVX512 __m512 exp_nonpositive(__m512 x) noexcept {
  // The second operand is what max returns for NaN.
  x = _mm512_max_ps(_mm512_set1_ps(exp_floor), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(log2_e)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(ln_2_high), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(ln_2_low), r);
  __m512 g = _mm512_set1_ps(exp_g[4]);
  TERSE_UNROLL
  for (int i = 3; i >= 0; --i) g = _mm512_fmadd_ps(g, r, _mm512_set1_ps(exp_g[i]));
  const __m512 y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), g, r), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
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
