#include "evaluation/schedule_search.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "evaluation/window.hpp"
#include "report/format.hpp"
#include "report/input_error.hpp"
#include "report/statistics.hpp"

namespace terse::examples {

std::vector<int> search_schedule(std::span<const double> bits, std::span<const double> losses,
                                 double budget_bits) {
  constexpr double rounding = 1e-9;  // of sums of bits
  const std::size_t candidates = bits.size(), layers = losses.size() / candidates;
  const auto fewest = std::min_element(bits.begin(), bits.end());
  double left = (budget_bits - *fewest) * static_cast<double>(layers) + rounding;
  if (left < 0) {
    throw InputError("a budget of " + format_significant(budget_bits, 3) +
                     " bits is below the fewest of the policies, " + format_fixed(*fewest, 2));
  }
  std::vector<std::size_t> chosen(layers, static_cast<std::size_t>(fewest - bits.begin()));
  while (true) {
    double best_rate = 0, best_added = 0;
    std::size_t best_layer = 0, best = candidates;
    for (std::size_t layer = 0; layer < layers; ++layer) {
      const double* const own = losses.data() + layer * candidates;
      for (std::size_t c = 0; c < candidates; ++c) {
        const double added = bits[c] - bits[chosen[layer]];
        if (added <= 0 || added > left) continue;
        const double rate = (own[chosen[layer]] - own[c]) / added;
        if (rate <= best_rate) continue;
        best_rate = rate;
        best_added = added;
        best_layer = layer;
        best = c;
      }
    }
    if (best == candidates) break;
    chosen[best_layer] = best;
    left -= best_added;
  }
  return {chosen.begin(), chosen.end()};
}

LayerLosses::LayerLosses(const LlamaModel& model, std::vector<std::int32_t> tokens)
    : model_(model), tokens_(std::move(tokens)) {
  std::vector<float> x = model.embed(tokens_);
  for (int layer = 0; layer < model.config().layers; ++layer) {
    inputs_.push_back(x);
    run_reference_layers(model, x, layer, layer + 1);
  }
  for_each_logits(model, x, first_scored(), static_cast<int>(tokens_.size()),
                  [&](int, const float* row) {
                    logits_.insert(logits_.end(), row, row + model.config().vocabulary);
                  });
}

double LayerLosses::mean_kl(const PolicyRow& row, SessionConfig config, int layer) const {
  const int tokens = static_cast<int>(tokens_.size());
  config.layers = 1;
  config.first_layer = layer;
  config.max_tokens = tokens;
  config.max_step_tokens = std::min(128, tokens);
  const auto session = row.make_session(config);
  std::vector<float> x = inputs_[static_cast<std::size_t>(layer)];
  run_window_layer(model_, config, *session, layer, x);
  run_reference_layers(model_, x, layer + 1, model_.config().layers);
  const float* exact = logits_.data();
  double sum = 0;
  for_each_logits(model_, x, first_scored(), tokens, [&](int, const float* logits) {
    sum += score_token(exact, logits, model_.config().vocabulary, 0).kl;
    exact += model_.config().vocabulary;
  });
  return sum / (tokens - first_scored());
}

}  // namespace terse::examples
