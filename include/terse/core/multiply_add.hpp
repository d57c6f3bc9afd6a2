/// Sums of products over whole rows, in one order, by fused multiply-adds: the same bits on every
/// processor. Hosts that have the instruction take it, whatever they were compiled for.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"

#if TERSE_X86_DISPATCH
#include <immintrin.h>
#endif

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

namespace detail {

#if TERSE_X86_DISPATCH
[[nodiscard]] inline bool has_multiply_add() noexcept {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

__attribute__((target("avx2,fma"))) inline void add_scaled_avx2(float a, const float* x, int count,
                                                                float* y) noexcept {
  const __m256 factor = _mm256_set1_ps(a);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(y + i,
                     _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  }
  for (; i < count; ++i) {
    const __m128 sum = _mm_fmadd_ss(_mm_set_ss(a), _mm_load_ss(x + i), _mm_load_ss(y + i));
    _mm_store_ss(y + i, sum);
  }
}

__attribute__((target("avx2,fma"))) inline void add_rows_avx2(const float* x, const float* rows,
                                                              int num_rows, int width,
                                                              float* y) noexcept {
  int c = 0;
  for (; c + 64 <= width; c += 64) {
    __m256 sums[8];
    for (int k = 0; k < 8; ++k) sums[k] = _mm256_loadu_ps(y + c + 8 * k);
    const float* row = rows + c;
    for (int r = 0; r < num_rows; ++r, row += width) {
      const __m256 factor = _mm256_broadcast_ss(x + r);
      for (int k = 0; k < 8; ++k) {
        sums[k] = _mm256_fmadd_ps(factor, _mm256_loadu_ps(row + 8 * k), sums[k]);
      }
    }
    for (int k = 0; k < 8; ++k) _mm256_storeu_ps(y + c + 8 * k, sums[k]);
  }
  if (c == width) return;
  for (int r = 0; r < num_rows; ++r) {
    add_scaled_avx2(x[r], rows + std::ptrdiff_t{r} * width + c, width - c, y + c);
  }
}
#endif

}  // namespace detail

/// y[i] = a * x[i] + y[i], rounded once, for `count` numbers.
TERSE_HOST_DEVICE inline void add_scaled(float a, const float* x, int count, float* y) noexcept {
#if TERSE_X86_DISPATCH
  if (detail::has_multiply_add()) return detail::add_scaled_avx2(a, x, count, y);
#endif
  for (int i = 0; i < count; ++i) y[i] = fused_multiply_add(a, x[i], y[i]);
}

/// add_scaled of each row of `rows [num_rows, width]` with its number of `x`, one after another.
TERSE_HOST_DEVICE inline void add_rows(const float* x, const float* rows, int num_rows, int width,
                                       float* y) noexcept {
#if TERSE_X86_DISPATCH
  if (detail::has_multiply_add()) return detail::add_rows_avx2(x, rows, num_rows, width, y);
#endif
  for (int r = 0; r < num_rows; ++r) {
    for (int i = 0; i < width; ++i) {
      y[i] = fused_multiply_add(x[r], rows[std::ptrdiff_t{r} * width + i], y[i]);
    }
  }
}

/// Sum of a[i] * b[i] in 32 partial sums, the i-th of products i, i + 32, ... in this order;
/// neighbours among them are added, then neighbours among the results, until one is left.
TERSE_HOST_DEVICE inline float sum_of_products(const float* a, const float* b, int count) noexcept {
  constexpr int num_partials = 32;
  float partials[num_partials] = {};
  for (int i = 0; i < count; i += num_partials) {
    const int own = count - i < num_partials ? count - i : num_partials;
    for (int k = 0; k < own; ++k) {
      partials[k] = fused_multiply_add(a[i + k], b[i + k], partials[k]);
    }
  }
  return sum_of_neighbours(partials);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
