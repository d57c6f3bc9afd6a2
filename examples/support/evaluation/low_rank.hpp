#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "evaluation/policies.hpp"
#include "evaluation/session.hpp"
#include "model/llama.hpp"

namespace terse::examples {

/// Second moments of one layer, from running text.
struct LayerMoments {
  std::vector<double> inputs;   ///< [hidden, hidden]: sum over tokens of x x^T of the normed input
  std::vector<double> queries;  ///< [kv_head, channel]: mean square of the group's queries before
                                ///< RoPE, averaged within RoPE pairs
  long long tokens = 0;
};

/// The moments [layer] of a text (one token or more), which is run in windows that the model's
/// context allows. The windows are shared among `threads` threads; the result does not depend on
/// their number. `progress` is called, from any of them, with the tokens of each finished window.
[[nodiscard]] std::vector<LayerMoments> moments_of(const LlamaModel& model,
                                                   std::span<const std::int32_t> tokens,
                                                   int threads = 1,
                                                   const std::function<void(int)>& progress = {});

/// Factors of every layer's key and value projections, joint over the KV heads.
///
/// One-sided is Palu's whitening (arXiv 2407.21118, section 3.2): the truncated SVD of W C with C
/// the Cholesky factor of the inputs' second moment. Both-sided truncates S W C, S the square root
/// of the metric in which errors count: queries' mean squares for keys, W_o^T W_o for values.
[[nodiscard]] std::vector<LayerFactors> factorise(const LlamaModel& model,
                                                  const std::vector<LayerMoments>& moments,
                                                  const FactorRequest& request);

}  // namespace terse::examples
