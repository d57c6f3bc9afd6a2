#pragma once

#include <Eigen/Core>

#include "model/llama.hpp"

namespace terse::examples {

/// The metric in which errors of a KV head's values count, `[channel, channel]`: the sum over its
/// query heads of W_o^T W_o.
inline Eigen::MatrixXd output_metric(const LlamaConfig& config, const LlamaLayer& layer,
                                     int kv_head) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const int d = config.head_dim, group = config.query_heads / config.kv_heads;
  const Eigen::Map<const RowMajor> w_o(layer.w_o.data(), config.hidden, config.query_heads * d);
  Eigen::MatrixXd metric = Eigen::MatrixXd::Zero(d, d);
  for (int g = 0; g < group; ++g) {
    const Eigen::MatrixXd part = w_o.middleCols((kv_head * group + g) * d, d).cast<double>();
    metric += part.transpose() * part;
  }
  return metric;
}

}  // namespace terse::examples
