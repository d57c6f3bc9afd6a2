/// Dense blocks (fp32, fp16, fp8), softmax and scaling with AVX2, FMA and F16C.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/config.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx2 {

/// How 8 stored numbers become fp32. `factor` is what is left to multiply sums by: fp8 bits read as
/// fp16 are 2^8 too small.
struct LoadF32 {
  using Stored = float;
  static constexpr float factor = 1.0f;
  TERSE_INLINE_AVX2 static __m256 load(const float* p) noexcept { return _mm256_loadu_ps(p); }
};

struct LoadF16 {
  using Stored = F16;
  static constexpr float factor = 1.0f;
  TERSE_INLINE_AVX2 static __m256 load(const F16* p) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

struct LoadE4m3 {
  using Stored = std::uint8_t;
  static constexpr float factor = 256.0f;
  TERSE_INLINE_AVX2 static __m256 load(const std::uint8_t* p) noexcept {
    // The sign goes to bit 15, exponent and mantissa to bits 13..7; bit 14 got a copy of the sign.
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i words = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
    return _mm256_cvtph_ps(_mm_and_si128(words, _mm_set1_epi16(static_cast<short>(0xbfff))));
  }
};

TERSE_INLINE_AVX2 void prefetch(const std::byte* p) noexcept {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

/// R rows x 8 NV tokens.
template <class Load, int R, int NV>
TERSE_TARGET_AVX2 void score_tile(const float* queries, int width,
                                  const typename Load::Stored* keys, int tokens, float* scores,
                                  const std::byte* next) noexcept {
  constexpr int bytes = static_cast<int>(sizeof(typename Load::Stored));
  __m256 sum[R][NV];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) sum[r][v] = _mm256_setzero_ps();
  }
  for (int c = 0; c < width; ++c) {
    __m256 k[NV];
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) k[v] = Load::load(keys + v * 8);
    prefetch(next);
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256 q = _mm256_broadcast_ss(queries + static_cast<std::ptrdiff_t>(r) * width + c);
      TERSE_UNROLL
      for (int v = 0; v < NV; ++v) sum[r][v] = _mm256_fmadd_ps(q, k[v], sum[r][v]);
    }
    keys += tokens;
    next += tokens * bytes;
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) {
      __m256 s = sum[r][v];
      if constexpr (Load::factor != 1.0f) s = _mm256_mul_ps(s, _mm256_set1_ps(Load::factor));
      _mm256_storeu_ps(scores + r * block_tokens + v * 8, s);
    }
  }
}

template <class Load, int R>
TERSE_TARGET_AVX2 void score_rows(const float* queries, int width,
                                  const typename Load::Stored* keys, int tokens, float* scores,
                                  const std::byte* next) noexcept {
  constexpr int many = R <= 3 ? 4 : 2;  // twelve sums at most stay in registers
  int t = 0;
  for (; t + 8 * many <= tokens; t += 8 * many) {
    score_tile<Load, R, many>(queries, width, keys + t, tokens, scores + t, next);
    next += 8 * many * sizeof(typename Load::Stored);
  }
  if (t < tokens) score_tile<Load, R, 2>(queries, width, keys + t, tokens, scores + t, next);
}

template <class Load>
TERSE_TARGET_AVX2 void scores(const float* queries, int rows, int width,
                              const typename Load::Stored* keys, int tokens, float* scores,
                              const std::byte* next) noexcept {
  for (int row = 0; row < rows;) {
    // Without a hint, what is prefetched is what is being read.
    const std::byte* hint =
        row == 0 && next != nullptr ? next : reinterpret_cast<const std::byte*>(keys);
    const float* q = queries + static_cast<std::ptrdiff_t>(row) * width;
    float* out = scores + static_cast<std::ptrdiff_t>(row) * block_tokens;
    const int tile = dense_row_tile(rows - row);
    switch (tile) {
      case 1:
        score_rows<Load, 1>(q, width, keys, tokens, out, hint);
        break;
      case 2:
        score_rows<Load, 2>(q, width, keys, tokens, out, hint);
        break;
      case 3:
        score_rows<Load, 3>(q, width, keys, tokens, out, hint);
        break;
      case 4:
        score_rows<Load, 4>(q, width, keys, tokens, out, hint);
        break;
      default:
        score_rows<Load, 6>(q, width, keys, tokens, out, hint);
        break;
    }
    row += tile;
  }
}

/// Adds the first `count` lanes to `out`.
TERSE_INLINE_AVX2 void add_to(float* out, __m256 x, int count) noexcept {
  if (count >= 8) {
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), x));
    return;
  }
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, x);
  for (int i = 0; i < count; ++i) out[i] += lanes[i];
}

/// R rows x 8 NV channels, of which `count` exist. The block is summed from zero: adding 64 numbers
/// to a long sum one by one would cost its last bits.
template <class Load, int R, int NV>
TERSE_TARGET_AVX2 void value_tile(const float* probabilities, int width,
                                  const typename Load::Stored* values, int tokens,
                                  float* accumulators, int count, const std::byte* next) noexcept {
  using Stored = typename Load::Stored;
  __m256 sum[R][NV];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) sum[r][v] = _mm256_setzero_ps();
  }
  for (int t = 0; t < tokens; ++t) {
    __m256 x[NV];
    if (NV == 1 && count < 8) {
      Stored some[8] = {};
      std::memcpy(some, values, static_cast<std::size_t>(count) * sizeof(Stored));
      x[0] = Load::load(some);
    } else {
      TERSE_UNROLL
      for (int v = 0; v < NV; ++v) x[v] = Load::load(values + v * 8);
    }
    prefetch(next);
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256 p = _mm256_broadcast_ss(probabilities + r * block_tokens + t);
      TERSE_UNROLL
      for (int v = 0; v < NV; ++v) sum[r][v] = _mm256_fmadd_ps(p, x[v], sum[r][v]);
    }
    values += width;
    next += static_cast<std::size_t>(width) * sizeof(Stored);
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) {
      __m256 s = sum[r][v];
      if constexpr (Load::factor != 1.0f) s = _mm256_mul_ps(s, _mm256_set1_ps(Load::factor));
      add_to(accumulators + static_cast<std::ptrdiff_t>(r) * width + v * 8, s, NV == 1 ? count : 8);
    }
  }
}

template <class Load, int R>
TERSE_TARGET_AVX2 void value_rows(const float* probabilities, int width,
                                  const typename Load::Stored* values, int tokens,
                                  float* accumulators, const std::byte* next) noexcept {
  constexpr int many = R <= 3 ? 4 : 2;
  int c = 0;
  for (; c + 8 * many <= width; c += 8 * many) {
    value_tile<Load, R, many>(probabilities, width, values + c, tokens, accumulators + c, 8, next);
    next += 8 * many * sizeof(typename Load::Stored);
  }
  for (; c < width; c += 8) {
    value_tile<Load, R, 1>(probabilities, width, values + c, tokens, accumulators + c, width - c,
                           next);
  }
}

template <class Load>
TERSE_TARGET_AVX2 void values(const float* probabilities, int rows, int width,
                              const typename Load::Stored* values, int tokens, float* accumulators,
                              const std::byte* next) noexcept {
  for (int row = 0; row < rows;) {
    const std::byte* hint =
        row == 0 && next != nullptr ? next : reinterpret_cast<const std::byte*>(values);
    const float* p = probabilities + static_cast<std::ptrdiff_t>(row) * block_tokens;
    float* out = accumulators + static_cast<std::ptrdiff_t>(row) * width;
    const int tile = dense_row_tile(rows - row);
    switch (tile) {
      case 1:
        value_rows<Load, 1>(p, width, values, tokens, out, hint);
        break;
      case 2:
        value_rows<Load, 2>(p, width, values, tokens, out, hint);
        break;
      case 3:
        value_rows<Load, 3>(p, width, values, tokens, out, hint);
        break;
      case 4:
        value_rows<Load, 4>(p, width, values, tokens, out, hint);
        break;
      default:
        value_rows<Load, 6>(p, width, values, tokens, out, hint);
        break;
    }
    row += tile;
  }
}

TERSE_TARGET_AVX2 inline void scores_f32(const float* queries, int rows, int width,
                                         const float* keys, int tokens, float* out) {
  scores<LoadF32>(queries, rows, width, keys, tokens, out, nullptr);
}
TERSE_TARGET_AVX2 inline void values_f32(const float* probabilities, int rows, int width,
                                         const float* v, int tokens, float* accumulators) {
  values<LoadF32>(probabilities, rows, width, v, tokens, accumulators, nullptr);
}

/// exp(x) for x <= 0, relative error below 2e-7; 0 for -infinity, NaN for NaN.
TERSE_INLINE_AVX2 __m256 exp_nonpositive(__m256 x) noexcept {
  // The second operand is what max returns for NaN.
  x = _mm256_max_ps(_mm256_set1_ps(exp_floor), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(log2_e)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(ln_2_high), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(ln_2_low), r);
  __m256 g = _mm256_set1_ps(exp_g[4]);
  TERSE_UNROLL
  for (int i = 3; i >= 0; --i) g = _mm256_fmadd_ps(g, r, _mm256_set1_ps(exp_g[i]));
  const __m256 y = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), g, r), _mm256_set1_ps(1.0f));
  // Two factors, because 2^n alone leaves the normal numbers before the product does.
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

TERSE_INLINE_AVX2 float largest_lane(__m256 x) noexcept {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

TERSE_INLINE_AVX2 float sum_lanes(__m256 x) noexcept {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

TERSE_TARGET_AVX2 inline float softmax_block(float* scores, std::uint64_t mask,
                                             SoftmaxState* state) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256 x[8];
  __m256 peak = lowest;
  TERSE_UNROLL
  for (int v = 0; v < 8; ++v) {
    const __m256i bits = _mm256_set1_epi32(static_cast<int>(mask >> (8 * v) & 0xffu));
    const __m256i counts = _mm256_cmpeq_epi32(_mm256_and_si256(bits, bit), bit);
    x[v] = _mm256_blendv_ps(lowest, _mm256_loadu_ps(scores + 8 * v), _mm256_castsi256_ps(counts));
    peak = _mm256_max_ps(peak, x[v]);
  }
  const float block_max = largest_lane(peak);
  const float old_max = state->max;
  const float maximum = block_max > old_max ? block_max : old_max;
  // Where every logit so far excludes its token, 0 takes the place of the maximum: exp(-inf) = 0.
  const float reference = maximum == -__builtin_inff() ? 0.0f : maximum;
  __m256 total = _mm256_setzero_ps();
  TERSE_UNROLL
  for (int v = 0; v < 8; ++v) {
    // Tokens outside the mask are at -infinity: their exp is 0.
    const __m256 p = exp_nonpositive(_mm256_sub_ps(x[v], _mm256_set1_ps(reference)));
    _mm256_storeu_ps(scores + 8 * v, p);
    total = _mm256_add_ps(total, p);
  }
  const float sum = sum_lanes(total);
  if (maximum == old_max) {
    state->sum += sum;
    return 1.0f;
  }
  const float factor = _mm256_cvtss_f32(exp_nonpositive(_mm256_set1_ps(old_max - maximum)));
  state->max = maximum;
  state->sum = state->sum * factor + sum;
  return factor;
}

TERSE_TARGET_AVX2 inline void soft_cap(float* x, int count, float cap) {
  const __m256 inverse = _mm256_set1_ps(1.0f / cap), one = _mm256_set1_ps(1.0f);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int i = 0; i < count; i += 8) {
    const __m256 y = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
    const __m256 size = _mm256_andnot_ps(sign, y), square = _mm256_mul_ps(y, y);
    const __m256 e = exp_nonpositive(_mm256_mul_ps(size, _mm256_set1_ps(-2.0f)));
    const __m256 far = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
    __m256 near = _mm256_set1_ps(tanh_series[3]);
    TERSE_UNROLL
    for (int k = 2; k >= 0; --k) {
      near = _mm256_fmadd_ps(near, square, _mm256_set1_ps(tanh_series[k]));
    }
    near = _mm256_fmadd_ps(_mm256_mul_ps(near, square), size, size);
    const __m256 t =
        _mm256_blendv_ps(far, near, _mm256_cmp_ps(size, _mm256_set1_ps(tanh_near), _CMP_LT_OQ));
    _mm256_storeu_ps(x + i,
                     _mm256_mul_ps(_mm256_or_ps(t, _mm256_and_ps(y, sign)), _mm256_set1_ps(cap)));
  }
}

TERSE_TARGET_AVX2 inline void scale(float* x, int count, float factor) {
  const __m256 f = _mm256_set1_ps(factor);
  int i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(f, _mm256_loadu_ps(x + i)));
  for (; i < count; ++i) x[i] *= factor;
}

TERSE_TARGET_AVX2 inline void softmax_rows(float* scores, int rows, std::uint64_t mask,
                                           SoftmaxState* states, int width, float* accumulators) {
  for (int row = 0; row < rows; ++row) {
    const float factor = softmax_block(scores + row * block_tokens, mask, states + row);
    if (factor != 1.0f) {
      scale(accumulators + static_cast<std::ptrdiff_t>(row) * width, width, factor);
    }
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
