#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "evaluation/policies.hpp"
#include "model/llama.hpp"

namespace terse::examples {

/// A candidate for each layer, found greedily: all layers start with the fewest bits, and the raise
/// that takes most of the loss for each bit it adds is made, as long as one fits the budget.
/// \param bits `[candidate]`, per element
/// \param losses `[layer, candidate]`
/// \param budget_bits per element, on average over the layers
/// \return `[layer]`: the number of its candidate
/// Throws InputError where the budget is below the fewest bits.
[[nodiscard]] std::vector<int> search_schedule(std::span<const double> bits,
                                               std::span<const double> losses, double budget_bits);

/// A window of text decoded with plain 16-bit keys and values, and what it costs to store one
/// layer's as a policy does.
class LayerLosses {
 public:
  LayerLosses(const LlamaModel& model, std::vector<std::int32_t> tokens);

  /// The mean divergence of the window's second half when only `layer` is stored under `row`, and
  /// all other layers are exact. May be called by several threads at once.
  /// \param config as make_session's; its layers and sizes are set here
  [[nodiscard]] double mean_kl(const PolicyRow& row, SessionConfig config, int layer) const;

 private:
  [[nodiscard]] int first_scored() const { return static_cast<int>(tokens_.size()) / 2; }

  const LlamaModel& model_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::vector<float>> inputs_;  // [layer][token, hidden]: the residual stream before it
  std::vector<float> logits_;               // [row, vocabulary], of the scored positions
};

}  // namespace terse::examples
