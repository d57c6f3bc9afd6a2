#include "evaluation/passkey.hpp"

#include <algorithm>

#include "evaluation/window.hpp"
#include "model/matmul.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

std::vector<PasskeyCase> make_passkeys(const Tokenizer& tokenizer,
                                       std::span<const std::int32_t> haystack, int length_tokens,
                                       int count) {
  constexpr double depths[] = {0.1, 0.5, 0.9};
  std::vector<PasskeyCase> cases;
  std::uint32_t state = 20261122;
  for (int i = 0; i < count; ++i) {
    std::string key;
    for (int d = 0; d < 5; ++d) {
      state = state * 1664525u + 1013904223u;
      key += static_cast<char>('0' + (state >> 16) % 10);
    }
    const bool first_form = i % 2 == 0;
    const std::string statement =
        first_form
            ? "\n\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n\n"
            : "\n\nThe secret number of Elizabeth is " + key + ".\n\n";
    const std::string question = first_form ? "\n\nWhat is the pass key? The pass key is " + key
                                            : "\n\nThe secret number of Elizabeth is " + key;
    const auto planted = tokenizer.encode(statement, SpecialTokens::as_text, AddBos::no);
    const auto asked = tokenizer.encode(question, SpecialTokens::as_text, AddBos::no);
    const int prose = length_tokens - static_cast<int>(planted.size() + asked.size());
    if (prose < 64 || static_cast<std::size_t>(prose) > haystack.size()) {
      throw InputError("the haystack text is too short for passkeys of " +
                       std::to_string(length_tokens) + " tokens");
    }
    for (std::size_t d = 0; d < 5; ++d) {
      if (tokenizer.token_bytes(asked[asked.size() - 5 + d]) != std::string_view(&key[d], 1)) {
        throw InputError("the model's tokeniser does not keep digits apart; passkeys need that");
      }
    }
    const int before = static_cast<int>(prose * depths[i / 2 % 3]);
    PasskeyCase one;
    const auto hay = haystack.first(static_cast<std::size_t>(prose));
    one.tokens.assign(hay.begin(), hay.begin() + before);
    one.tokens.insert(one.tokens.end(), planted.begin(), planted.end());
    one.tokens.insert(one.tokens.end(), hay.begin() + before, hay.end());
    one.tokens.insert(one.tokens.end(), asked.begin(), asked.end());
    cases.push_back(std::move(one));
  }
  return cases;
}

PasskeyScore score_passkey(const LlamaModel& model, const SessionConfig& config, Session& session,
                           const PasskeyCase& passkey) {
  const std::vector<float> x = run_window(model, config, session, passkey.tokens);
  const int length = static_cast<int>(passkey.tokens.size());
  const int vocabulary = model.config().vocabulary;
  PasskeyScore score;
  score.digits = passkey.digits;
  for_each_logits(
      model, x, length - passkey.digits - 1, length - 1, [&](int position, const float* logits) {
        const std::int32_t digit = passkey.tokens[static_cast<std::size_t>(position) + 1];
        score.nll += log_sum_exp(logits, vocabulary) - static_cast<double>(logits[digit]);
        if (std::max_element(logits, logits + vocabulary) - logits == digit) ++score.digits_right;
      });
  return score;
}

}  // namespace terse::examples
