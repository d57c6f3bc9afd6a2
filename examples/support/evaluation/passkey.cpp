#include "evaluation/passkey.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "evaluation/window.hpp"
#include "model/matmul.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace {

constexpr int key_digits = 5;

std::vector<std::string> make_keys(int count) {
  std::vector<std::string> keys(static_cast<std::size_t>(count));
  std::uint32_t state = 20261122;
  for (std::string& key : keys) {
    for (int d = 0; d < key_digits; ++d) {
      state = state * 1664525u + 1013904223u;
      key += static_cast<char>('0' + (state >> 16) % 10);
    }
  }
  return keys;
}

struct Wording {
  std::string statement;
  std::string question;
};

Wording wording_of(const std::string& key, bool first_form) {
  if (first_form) {
    return {"\n\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n\n",
            "\n\nWhat is the pass key? The pass key is " + key};
  }
  return {"\n\nThe secret number of Elizabeth is " + key + ".\n\n",
          "\n\nThe secret number of Elizabeth is " + key};
}

}  // namespace

bool keeps_digits_apart(const Tokenizer& tokenizer) {
  // Longer joints would be made of joined pairs, and a digit could be joined to the space before.
  for (char a = '0'; a <= '9'; ++a) {
    for (char b = '0'; b <= '9'; ++b) {
      const auto tokens =
          tokenizer.encode(std::string("is ") + a + b, SpecialTokens::as_text, AddBos::no);
      if (tokens.size() < 2 || tokenizer.token_bytes(tokens.back()) != std::string_view(&b, 1) ||
          tokenizer.token_bytes(tokens[tokens.size() - 2]) != std::string_view(&a, 1)) {
        return false;
      }
    }
  }
  return true;
}

std::vector<PasskeyCase> make_passkeys(const Tokenizer& tokenizer,
                                       std::span<const std::int32_t> haystack, int length_tokens,
                                       int count) {
  if (count > 0 && !keeps_digits_apart(tokenizer)) {
    throw InputError("the model's tokeniser joins digits; passkeys need a token for each");
  }
  // Six kinds, 2 * depth + form, in an order that brings all depths into a short run.
  constexpr double depths[] = {0.1, 0.5, 0.9};
  constexpr int kinds[] = {0, 3, 4, 1, 2, 5};
  const std::vector<std::string> keys = make_keys((count + 5) / 6 * 6);
  std::vector<PasskeyCase> cases;
  for (int i = 0; i < count; ++i) {
    const int kind = kinds[i % 6];
    const int number = i / 6 * 6 + kind;
    const Wording text = wording_of(keys[static_cast<std::size_t>(number)], kind % 2 == 0);
    const auto planted = tokenizer.encode(text.statement, SpecialTokens::as_text, AddBos::no);
    const auto asked = tokenizer.encode(text.question, SpecialTokens::as_text, AddBos::no);
    const int prose = length_tokens - static_cast<int>(planted.size() + asked.size());
    if (prose < 64 || static_cast<std::size_t>(prose) > haystack.size()) {
      throw InputError("the haystack text is too short for passkeys of " +
                       std::to_string(length_tokens) + " tokens");
    }
    const int before = static_cast<int>(prose * depths[kind / 2]);
    PasskeyCase one;
    one.digits = key_digits;
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
