#pragma once

#include "thread_pool.hpp"

namespace terse::examples {

/// y = x w^T in fp32.
///
/// Work is cut into tiles that depend on the sizes alone, so the result is the same for every
/// thread count. It may differ in the last bits between instruction sets and between row counts.
/// \param x `[rows, in]`
/// \param w `[out, in]`, as weights are stored
/// \param y `[rows, out]`; must not overlap x or w
void matmul(ThreadPool& pool, const float* x, int rows, const float* w, int in, int out, float* y);

/// Products that a model may use instead of matmul's.
class MatrixProducts {
 public:
  MatrixProducts() = default;
  MatrixProducts(const MatrixProducts&) = delete;
  MatrixProducts& operator=(const MatrixProducts&) = delete;
  virtual ~MatrixProducts() = default;

  /// As matmul. `w` must stay where and as it is until the last call.
  virtual void multiply(const float* x, int rows, const float* w, int in, int out, float* y) = 0;
};

/// The natural logarithm of the sum of exp(values[i]), i in [0, count), count > 0.
[[nodiscard]] double log_sum_exp(const float* values, int count);

/// gate[i] = silu(gate[i]) * up[i], i in [0, count), silu(x) = x / (1 + exp(-x)).
void silu_multiply(float* gate, const float* up, int count);

}  // namespace terse::examples
