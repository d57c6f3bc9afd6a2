#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "evaluation/policies.hpp"
#include "evaluation/session.hpp"
#include "model/llama.hpp"
#include "model/tokenizer.hpp"

namespace terse::examples {

/// Chooses tokens from logits. Two samplers of the same seed draw the same noise at the same step,
/// one number for each token of the vocabulary, so that small changes of the logits rarely change
/// the choice (the Gumbel-max trick, arXiv 1411.0030).
class Sampler {
 public:
  Sampler(double temperature, std::int64_t seed)
      : temperature_(temperature), generator_(static_cast<std::uint64_t>(seed)) {}

  [[nodiscard]] std::int32_t choose(std::span<const float> logits);

 private:
  double temperature_;
  std::mt19937_64 generator_;
};

/// What one policy made of a prompt.
struct Continuation {
  std::vector<std::int32_t> tokens;  ///< the token that ends the text included
  bool has_ended = false;            ///< the model ended its text
  double bytes_per_token = 0;        ///< pages, tails and tables held / tokens, at the end
  double tokens_per_second = 0;      ///< of single-token steps; NaN without any
};

/// Continues `prompt` by at most `count` tokens. `progress` is called after each one.
[[nodiscard]] Continuation continue_text(const LlamaModel& model, const Tokenizer& tokenizer,
                                         const PolicyRow& policy,
                                         const std::vector<LayerFactors>* factors,
                                         const Calibration* calibration,
                                         std::span<const std::int32_t> prompt, int count,
                                         Sampler sampler, const std::function<void()>& progress);

/// Tokens that both have at the same place, and the first place where they differ or one has ended.
struct Agreement {
  std::size_t equal = 0;
  std::size_t longer = 0;            ///< tokens of the longer one
  std::size_t first_difference = 0;  ///< `longer` where there is none
};

[[nodiscard]] Agreement compare(std::span<const std::int32_t> a, std::span<const std::int32_t> b);

}  // namespace terse::examples
