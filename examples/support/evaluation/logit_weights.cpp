#include "evaluation/logit_weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "model/kernels.hpp"

namespace terse::examples {

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Queries whose attention is computed at a time.
constexpr int block_queries = 64;

}  // namespace

std::vector<double> logit_weights(const LlamaConfig& config, const LayerTrace& trace,
                                  std::span<const float> queries, int query_head,
                                  const Eigen::MatrixXd& metric, int sink_tokens, int tail_tokens) {
  const Kernels& k = kernels();
  const int d = config.head_dim, kv_head = query_head / (config.query_heads / config.kv_heads);
  const std::ptrdiff_t q_row = std::ptrdiff_t{config.query_heads} * d;
  const std::ptrdiff_t kv_row = std::ptrdiff_t{config.kv_heads} * d;
  const auto tokens = static_cast<int>(static_cast<std::ptrdiff_t>(trace.keys.size()) / kv_row);
  const float* q = queries.data() + std::ptrdiff_t{query_head} * d;
  const float* keys = trace.keys.data() + std::ptrdiff_t{kv_head} * d;
  const float* values = trace.values.data() + std::ptrdiff_t{kv_head} * d;
  const RowMajor m = metric.cast<float>();  // symmetric
  const auto lengths = [&](const RowMajor& x, const RowMajor& x_in_metric) {
    return Eigen::VectorXf(x.cwiseProduct(x_in_metric).rowwise().sum());
  };
  const RowMajor v = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>(
      values, tokens, d, Eigen::OuterStride<>(kv_row));
  RowMajor turned(tokens, d);
  k.multiply_transposed(v.data(), d, tokens, m.data(), d, d, d, turned.data(), d);
  const Eigen::VectorXf value_lengths = lengths(v, turned);

  std::vector<double> weights(static_cast<std::size_t>(tokens));
  for (int first = 0; first < tokens; first += block_queries) {
    const int rows = std::min(block_queries, tokens - first), visible = first + rows;
    RowMajor p(rows, visible), products(rows, visible), output(rows, d), output_turned(rows, d);
    k.multiply_transposed(q + first * q_row, q_row, rows, keys, kv_row, d, visible, p.data(),
                          visible);
    for (int r = 0; r < rows; ++r) {
      const int seen = first + r + 1;
      k.softmax(p.data() + std::ptrdiff_t{r} * visible, seen,
                1.0f / std::sqrt(static_cast<float>(d)));
      p.row(r).tail(visible - seen).setZero();
    }
    k.multiply(p.data(), visible, rows, v.data(), d, visible, d, output.data(), d);
    k.multiply_transposed(output.data(), d, rows, m.data(), d, d, d, output_turned.data(), d);
    k.multiply_transposed(output_turned.data(), d, rows, v.data(), d, d, visible, products.data(),
                          visible);
    const Eigen::VectorXf output_lengths = lengths(output, output_turned);
    for (int r = 0; r < rows; ++r) {
      double sum = 0;
      for (int i = sink_tokens; i <= first + r - tail_tokens; ++i) {
        const double distance = double{value_lengths[i]} + output_lengths[r] - 2.0 * products(r, i);
        sum += double{p(r, i)} * p(r, i) * std::max(distance, 0.0);
      }
      weights[static_cast<std::size_t>(first) + static_cast<std::size_t>(r)] = sum;
    }
  }
  return weights;
}

}  // namespace terse::examples
