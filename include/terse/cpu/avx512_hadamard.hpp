/// The Hadamard rotation of a vector with AVX-512.
#pragma once

#include "terse/config.hpp"
#include "terse/cpu/simd.hpp"
#include "terse/quant/hadamard.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// A stage inside a vector: a lane becomes its partner plus itself or, in `second` lanes, minus
/// itself. Products by +-1 are exact, so the sums round as plain ones.
TERSE_INLINE_AVX512 __m512 hadamard_stage(__m512 x, __m512 partner, __mmask16 second) noexcept {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_fmadd_ps(x, _mm512_mask_mov_ps(one, second, _mm512_set1_ps(-1.0f)), partner);
}

/// The stages over lanes 1, 2, 4 and 8 apart.
TERSE_INLINE_AVX512 __m512 hadamard_lanes(__m512 x) noexcept {
  x = hadamard_stage(x, _mm512_permute_ps(x, 0xb1), 0xaaaa);
  x = hadamard_stage(x, _mm512_permute_ps(x, 0x4e), 0xcccc);
  x = hadamard_stage(x, _mm512_shuffle_f32x4(x, x, 0xb1), 0xf0f0);
  return hadamard_stage(x, _mm512_shuffle_f32x4(x, x, 0x4e), 0xff00);
}

TERSE_TARGET_AVX512 inline void hadamard(float* x, int width, int size) {
  if (size < 16) return terse::hadamard(x, width, size);
  const __m512 norm = _mm512_set1_ps(hadamard_norm(size));
  for (int start = 0; start < width; start += size) {
    float* run = x + start;
    for (int i = 0; i < size; i += 16) {
      _mm512_storeu_ps(run + i, hadamard_lanes(_mm512_loadu_ps(run + i)));
    }
    for (int half = 16; half < size; half *= 2) {
      for (int i = 0; i < size; i += 2 * half) {
        for (int j = i; j < i + half; j += 16) {
          const __m512 a = _mm512_loadu_ps(run + j), b = _mm512_loadu_ps(run + j + half);
          _mm512_storeu_ps(run + j, _mm512_add_ps(a, b));
          _mm512_storeu_ps(run + j + half, _mm512_sub_ps(a, b));
        }
      }
    }
    for (int i = 0; i < size; i += 16) {
      _mm512_storeu_ps(run + i, _mm512_mul_ps(_mm512_loadu_ps(run + i), norm));
    }
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
