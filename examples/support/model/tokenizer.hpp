#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.hpp"

namespace terse::examples {

/// Whether text such as "<|im_start|>" becomes the control token of that name or ordinary text.
/// Leave it `as_text` for text that comes from outside.
enum class SpecialTokens { as_text, parsed };

/// Whether encode starts with the beginning-of-sequence token.
enum class AddBos { as_model_says, no };

/// Text to token ids and back, as a GGUF file describes it: byte-level BPE ("gpt2" with the
/// pre-tokenisers "smollm", "gpt-2" and "llama-bpe") and SentencePiece BPE with byte fallback
/// ("llama").
///
/// Token ids are those of llama.cpp for valid UTF-8. Bytes that are not valid UTF-8 are kept as
/// bytes. A byte that has no token becomes the unknown token, or an InputError where there is none.
class Tokenizer {
 public:
  /// Copies what it needs from the file. Throws InputError where the vocabulary is damaged or its
  /// kind is not supported.
  [[nodiscard]] static Tokenizer load(const GgufFile& file);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 SpecialTokens special = SpecialTokens::as_text,
                                                 AddBos add_bos = AddBos::as_model_says) const;

  /// The text of the tokens; control tokens contribute their names or nothing. A space that encode
  /// adds before the first word (SentencePiece) is dropped again.
  /// Throws InputError for a token outside the vocabulary.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> tokens,
                                   bool show_control_tokens = false) const;

  /// The bytes one token stands for; may be a part of a UTF-8 character. Empty for control tokens.
  [[nodiscard]] std::string_view token_bytes(std::int32_t token) const;

  [[nodiscard]] std::int32_t vocabulary() const;
  /// The token spelled exactly so, control tokens included.
  [[nodiscard]] std::optional<std::int32_t> find_token(std::string_view spelling) const;
  /// Whether generation ends here: the end-of-sequence, end-of-turn or end-of-text token.
  [[nodiscard]] bool is_end_of_generation(std::int32_t token) const;

 private:
  struct Vocabulary;
  explicit Tokenizer(std::unique_ptr<Vocabulary> vocabulary);
  std::unique_ptr<Vocabulary> vocabulary_;
};

/// Decodes a stream of tokens to text that is printed as it grows: bytes of a UTF-8 character are
/// held back until the character is complete.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  /// The text that became complete with this token.
  [[nodiscard]] std::string push(std::int32_t token);
  /// What was held back, complete or not.
  [[nodiscard]] std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string held_;
};

}  // namespace terse::examples
