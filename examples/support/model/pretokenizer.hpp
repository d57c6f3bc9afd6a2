#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace terse::examples {

/// The rules by which byte-level BPE cuts text into words before it merges bytes within them.
enum class Pretokenizer {
  gpt2,      ///< contractions, letters, numbers, others; one leading space belongs to the word
  smollm,    ///< every number character alone, then gpt2 on what lies between
  llama_bpe  ///< Llama 3: numbers by threes, contractions in any case, line ends kept together
};

/// The rules that a GGUF file means by `tokenizer.ggml.pre`; nothing where they are not known here.
[[nodiscard]] std::optional<Pretokenizer> pretokenizer_by_name(std::string_view name);

/// Cuts `text` into words; together they are the text. They point into it.
[[nodiscard]] std::vector<std::string_view> split_words(Pretokenizer pretokenizer,
                                                        std::string_view text);

}  // namespace terse::examples
