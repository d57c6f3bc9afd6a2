#pragma once

#include <cstddef>

namespace terse::examples {

/// The single-threaded inner loops of the forward pass, compiled once for each instruction set.
/// Matrices are row-major; `stride` counts the elements from one row to the next.
struct Kernels {
  /// y[rows, out] = x[rows, in] w[out, in]^T
  void (*multiply_transposed)(const float* x, std::ptrdiff_t x_stride, int rows, const float* w,
                              std::ptrdiff_t w_stride, int in, int out, float* y,
                              std::ptrdiff_t y_stride);

  /// y[rows, out] = x[rows, in] w[in, out]
  void (*multiply)(const float* x, std::ptrdiff_t x_stride, int rows, const float* w,
                   std::ptrdiff_t w_stride, int in, int out, float* y, std::ptrdiff_t y_stride);

  /// values[i] = exp(scale * (values[i] - max)), divided by their sum; count > 0.
  void (*softmax)(float* values, int count, float scale);

  /// gate[i] = silu(gate[i]) * up[i]
  void (*silu_multiply)(float* gate, const float* up, int count);

  /// ln(sum of exp(values[i])); count > 0.
  double (*log_sum_exp)(const float* values, int count);
};

/// Those that suit this processor best.
[[nodiscard]] const Kernels& kernels();

/// One table for each translation unit; call only what the processor supports.
[[nodiscard]] const Kernels& baseline_kernels();
[[nodiscard]] const Kernels& avx2_kernels();
[[nodiscard]] const Kernels& avx512_kernels();

}  // namespace terse::examples
