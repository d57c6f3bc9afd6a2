#pragma once

#include <span>
#include <vector>

#include <Eigen/Core>

#include "evaluation/window.hpp"
#include "model/llama.hpp"

namespace terse::examples {

/// How much errors of stored keys matter to each query of a query head, `[token]`: a key's error
/// moves its logit, and that the head's output, to first order by p_i (v_i - o) for each unit. The
/// weight is the sum over the stored tokens i of p_i^2 |v_i - o|^2, lengths measured in `metric
/// [channel, channel]`: how errors that are independent from key to key add up. Not stored are the
/// first `sink_tokens` and the newest `tail_tokens`, which are exact.
/// \param queries `[token, query head, channel]`, after RoPE
[[nodiscard]] std::vector<double> logit_weights(const LlamaConfig& config, const LayerTrace& trace,
                                                std::span<const float> queries, int query_head,
                                                const Eigen::MatrixXd& metric, int sink_tokens,
                                                int tail_tokens);

}  // namespace terse::examples
