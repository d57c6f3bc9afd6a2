#include "continuation.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "evaluation/decoder.hpp"

namespace terse::examples {

namespace {

/// Tokens of the prompt that go through the model at once.
constexpr int prompt_step_tokens = 128;

}  // namespace

std::int32_t Sampler::choose(std::span<const float> logits) {
  if (temperature_ == 0) {
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) -
                                     logits.begin());
  }
  std::int32_t best = 0;
  double best_score = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    // In (0, 1), and the same with every standard library.
    const double uniform = (static_cast<double>(generator_() >> 11) + 0.5) * 0x1.0p-53;
    const double score = double{logits[i]} / temperature_ - std::log(-std::log(uniform));
    if (score > best_score) {
      best_score = score;
      best = static_cast<std::int32_t>(i);
    }
  }
  return best;
}

Continuation continue_text(const LlamaModel& model, const Tokenizer& tokenizer,
                           const PolicyRow& policy, const std::vector<LayerFactors>* factors,
                           const Calibration* calibration, std::span<const std::int32_t> prompt,
                           int count, Sampler sampler, const std::function<void()>& progress) {
  using Clock = std::chrono::steady_clock;
  const int prompt_tokens = static_cast<int>(prompt.size());
  const SessionConfig config{.model = &model,
                             .layers = model.config().layers,
                             .max_tokens = prompt_tokens + count,
                             .max_step_tokens = std::min(prompt_step_tokens, prompt_tokens),
                             .pool = &model.pool(),
                             .factors = factors,
                             .calibration = calibration};
  const auto session = policy.make_session(config);
  Continuation result;
  std::vector<float> logits = decode(model, config, *session, prompt, 0);
  int length = prompt_tokens;
  Clock::duration spent{};
  while (true) {
    const std::int32_t token = sampler.choose(logits);
    result.tokens.push_back(token);
    progress();
    result.has_ended = tokenizer.is_end_of_generation(token);
    if (result.has_ended || static_cast<int>(result.tokens.size()) == count) break;
    const auto begin = Clock::now();
    logits = decode(model, config, *session, {&token, 1}, length);
    spent += Clock::now() - begin;
    ++length;
  }
  result.bytes_per_token =
      (session->memory().page_bytes + session->generation_overhead_bytes()) / length;
  const double steps = length - prompt_tokens;
  result.tokens_per_second = steps > 0 ? steps / std::chrono::duration<double>(spent).count()
                                       : std::numeric_limits<double>::quiet_NaN();
  return result;
}

Agreement compare(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  Agreement agreement{.longer = std::max(a.size(), b.size())};
  agreement.first_difference = agreement.longer;
  for (std::size_t i = 0; i < agreement.longer; ++i) {
    if (i < a.size() && i < b.size() && a[i] == b[i]) {
      ++agreement.equal;
    } else {
      agreement.first_difference = std::min(agreement.first_difference, i);
    }
  }
  return agreement;
}

}  // namespace terse::examples
