#pragma once

#include <Eigen/Core>

#include "model/llama.hpp"

namespace terse::examples {

/// The metric in which errors of a query head's output count, `[channel, channel]`: W_o^T W_o.
inline Eigen::MatrixXd head_output_metric(const LlamaConfig& config, const LlamaLayer& layer,
                                          int query_head) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const int d = config.head_dim;
  const Eigen::Map<const RowMajor> w_o(layer.w_o.data(), config.hidden, config.query_heads * d);
  const Eigen::MatrixXd part = w_o.middleCols(query_head * d, d).cast<double>();
  return part.transpose() * part;
}

/// The metric in which errors of a KV head's values count, `[channel, channel]`: the sum over its
/// query heads.
inline Eigen::MatrixXd output_metric(const LlamaConfig& config, const LlamaLayer& layer,
                                     int kv_head) {
  const int d = config.head_dim, group = config.query_heads / config.kv_heads;
  Eigen::MatrixXd metric = Eigen::MatrixXd::Zero(d, d);
  for (int g = 0; g < group; ++g) metric += head_output_metric(config, layer, kv_head * group + g);
  return metric;
}

}  // namespace terse::examples
