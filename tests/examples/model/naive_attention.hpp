#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace terse_test {

/// Causal attention in fp64, straight from its definition; shapes as in reference_attention.
inline std::vector<double> naive_attention(int query_heads, int kv_heads, int head_dim,
                                           const std::vector<double>& q,
                                           const std::vector<double>& k,
                                           const std::vector<double>& v, int first_position) {
  const auto at = [&](const std::vector<double>& x, int token, int heads, int head, int channel) {
    const int index = (token * heads + head) * head_dim + channel;
    return x[static_cast<std::size_t>(index)];
  };
  const int queries = static_cast<int>(q.size()) / (query_heads * head_dim);
  std::vector<double> output;
  for (int query = 0; query < queries; ++query) {
    for (int head = 0; head < query_heads; ++head) {
      const int kv_head = head / (query_heads / kv_heads);
      std::vector<double> sum(static_cast<std::size_t>(head_dim));
      double weights = 0;
      for (int token = 0; token <= first_position + query; ++token) {
        double logit = 0;
        for (int c = 0; c < head_dim; ++c) {
          logit += at(q, query, query_heads, head, c) * at(k, token, kv_heads, kv_head, c);
        }
        const double weight = std::exp(logit / std::sqrt(head_dim));
        weights += weight;
        for (int c = 0; c < head_dim; ++c) {
          sum[static_cast<std::size_t>(c)] += weight * at(v, token, kv_heads, kv_head, c);
        }
      }
      for (const double value : sum) {
        output.push_back(value / weights);
      }
    }
  }
  return output;
}

}  // namespace terse_test
