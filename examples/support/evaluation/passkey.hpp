#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evaluation/session.hpp"
#include "model/llama.hpp"
#include "model/tokenizer.hpp"

namespace terse::examples {

/// A five-digit key hidden in prose, and a question about it at the end.
struct PasskeyCase {
  std::vector<std::int32_t> tokens;  ///< the last `digits` tokens are the key's digits
  int digits = 5;
};

/// Whether the tokeniser gives each digit of a number a token of its own, as passkeys need.
[[nodiscard]] bool keeps_digits_apart(const Tokenizer& tokenizer);

/// `count` cases of `length_tokens` tokens: two forms, depths of 10, 50 and 90 %, keys from a fixed
/// sequence. Three cases in a row have all depths, two both forms, and six every pair of them once.
/// Throws InputError if `haystack` is too short or the tokeniser joins digits.
[[nodiscard]] std::vector<PasskeyCase> make_passkeys(const Tokenizer& tokenizer,
                                                     std::span<const std::int32_t> haystack,
                                                     int length_tokens, int count);

struct PasskeyScore {
  int digits = 0;
  int digits_right = 0;  ///< the digit is the most probable token
  double nll = 0;        ///< summed over digits, nats
};

/// Teacher-forced through `session`.
[[nodiscard]] PasskeyScore score_passkey(const LlamaModel& model, const SessionConfig& config,
                                         Session& session, const PasskeyCase& passkey);

}  // namespace terse::examples
