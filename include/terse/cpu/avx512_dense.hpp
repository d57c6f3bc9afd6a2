/// Dense blocks (fp32, fp16, fp8) with AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// How 16 stored numbers become fp32. `factor` is what is left to multiply sums by: fp8 bits read
/// as fp16 are 2^8 too small.
struct LoadF32 {
  using Stored = float;
  static constexpr float factor = 1.0f;
  TERSE_INLINE_AVX512 static __m512 load(const float* p) noexcept { return _mm512_loadu_ps(p); }
  TERSE_INLINE_AVX512 static __m512 load(const float* p, __mmask16 mask) noexcept {
    return _mm512_maskz_loadu_ps(mask, p);
  }
};

struct LoadF16 {
  using Stored = F16;
  static constexpr float factor = 1.0f;
  TERSE_INLINE_AVX512 static __m512 load(const F16* p) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  TERSE_INLINE_AVX512 static __m512 load(const F16* p, __mmask16 mask) noexcept {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
};

struct LoadE4m3 {
  using Stored = std::uint8_t;
  static constexpr float factor = 256.0f;
  TERSE_INLINE_AVX512 static __m512 widen(__m128i bytes) noexcept {
    // The sign goes to bit 15, exponent and mantissa to bits 13..7; bit 14 got a copy of the sign.
    const __m256i words = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(words, _mm256_set1_epi16(static_cast<short>(0xbfff))));
  }
  TERSE_INLINE_AVX512 static __m512 load(const std::uint8_t* p) noexcept {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  TERSE_INLINE_AVX512 static __m512 load(const std::uint8_t* p, __mmask16 mask) noexcept {
    return widen(_mm_maskz_loadu_epi8(mask, p));
  }
};

/// R rows x 16 NV tokens.
template <class Load, int R, int NV>
TERSE_TARGET_AVX512 void score_tile(const float* queries, int width,
                                    const typename Load::Stored* keys, int tokens, float* scores,
                                    const std::byte* next) noexcept {
  constexpr int bytes = static_cast<int>(sizeof(typename Load::Stored));
  __m512 sum[R][NV];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (int c = 0; c < width; ++c) {
    __m512 k[NV];
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) k[v] = Load::load(keys + v * 16);
    TERSE_UNROLL
    for (int line = 0; line < 16 * NV * bytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T1);
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 q = _mm512_set1_ps(queries[static_cast<std::ptrdiff_t>(r) * width + c]);
      TERSE_UNROLL
      for (int v = 0; v < NV; ++v) sum[r][v] = _mm512_fmadd_ps(q, k[v], sum[r][v]);
    }
    keys += tokens;
    next += tokens * bytes;
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) {
      __m512 s = sum[r][v];
      if constexpr (Load::factor != 1.0f) s = _mm512_mul_ps(s, _mm512_set1_ps(Load::factor));
      _mm512_storeu_ps(scores + r * block_tokens + v * 16, s);
    }
  }
}

template <class Load, int R>
TERSE_TARGET_AVX512 void score_rows(const float* queries, int width,
                                    const typename Load::Stored* keys, int tokens, float* scores,
                                    const std::byte* next) noexcept {
  if (tokens == block_tokens) {
    return score_tile<Load, R, 4>(queries, width, keys, tokens, scores, next);
  }
  for (int t = 0; t < tokens; t += 16) {
    score_tile<Load, R, 1>(queries, width, keys + t, tokens, scores + t, next);
  }
}

template <class Load>
TERSE_TARGET_AVX512 void scores(const float* queries, int rows, int width,
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

/// R rows x 16 NV channels; `mask` selects channels of the last 16. The block is summed from zero:
/// adding 64 numbers to a long sum one by one would cost its last bits.
template <class Load, int R, int NV>
TERSE_TARGET_AVX512 void value_tile(const float* probabilities, int width,
                                    const typename Load::Stored* values, int tokens,
                                    float* accumulators, __mmask16 mask,
                                    const std::byte* next) noexcept {
  constexpr int bytes = static_cast<int>(sizeof(typename Load::Stored));
  __m512 sum[R][NV];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (int t = 0; t < tokens; ++t) {
    __m512 x[NV];
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) {
      x[v] = NV > 1 ? Load::load(values + v * 16) : Load::load(values, mask);
    }
    TERSE_UNROLL
    for (int line = 0; line < 16 * NV * bytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T1);
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 p = _mm512_set1_ps(probabilities[r * block_tokens + t]);
      TERSE_UNROLL
      for (int v = 0; v < NV; ++v) sum[r][v] = _mm512_fmadd_ps(p, x[v], sum[r][v]);
    }
    values += width;
    next += width * bytes;
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < NV; ++v) {
      float* out = accumulators + static_cast<std::ptrdiff_t>(r) * width + v * 16;
      const __m512 factor = _mm512_set1_ps(Load::factor);
      if (NV > 1 || mask == 0xffff) {  // masked stores are slow on some processors
        _mm512_storeu_ps(out, _mm512_fmadd_ps(sum[r][v], factor, _mm512_loadu_ps(out)));
      } else {
        const __m512 old = _mm512_maskz_loadu_ps(mask, out);
        _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(sum[r][v], factor, old));
      }
    }
  }
}

template <class Load, int R>
TERSE_TARGET_AVX512 void value_rows(const float* probabilities, int width,
                                    const typename Load::Stored* values, int tokens,
                                    float* accumulators, const std::byte* next) noexcept {
  int c = 0;
  for (; c + 64 <= width; c += 64) {
    value_tile<Load, R, 4>(probabilities, width, values + c, tokens, accumulators + c, 0, next);
    next += 64 * sizeof(typename Load::Stored);
  }
  for (; c < width; c += 16) {
    const int left = width - c;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    value_tile<Load, R, 1>(probabilities, width, values + c, tokens, accumulators + c, mask, next);
    next += 16 * sizeof(typename Load::Stored);
  }
}

template <class Load>
TERSE_TARGET_AVX512 void values(const float* probabilities, int rows, int width,
                                const typename Load::Stored* values, int tokens,
                                float* accumulators, const std::byte* next) noexcept {
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

TERSE_TARGET_AVX512 inline void scores_f32(const float* queries, int rows, int width,
                                           const float* keys, int tokens, float* out) {
  scores<LoadF32>(queries, rows, width, keys, tokens, out, nullptr);
}
TERSE_TARGET_AVX512 inline void values_f32(const float* probabilities, int rows, int width,
                                           const float* v, int tokens, float* accumulators) {
  values<LoadF32>(probabilities, rows, width, v, tokens, accumulators, nullptr);
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
