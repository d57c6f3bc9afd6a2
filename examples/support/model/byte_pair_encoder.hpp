#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pretokenizer.hpp"

namespace terse::examples {

/// Lets a map with std::string keys be searched with a std::string_view.
struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>{}(text);
  }
};
using TokenMap = std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>>;

/// The bytes that a token of a byte-level vocabulary spells: such vocabularies write every byte as
/// one printable character (Radford et al., "Language Models are Unsupervised Multitask Learners",
/// code). A character that stands for no byte is kept as its UTF-8 form.
[[nodiscard]] std::string bytes_of_spelling(std::string_view spelling);

/// Byte-level BPE (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
/// arXiv 1508.07909): within each word, neighbours merge in the order of the list of merges.
class BytePairEncoder {
 public:
  /// \param spellings the tokens that text may become, by spelling
  /// \param merges "left right", the most important first
  /// \param whole_words a word that is a token is taken whole, without merging
  /// \param unknown what a byte without a token becomes
  /// Throws InputError where a merge names no tokens.
  BytePairEncoder(Pretokenizer pretokenizer, const TokenMap& spellings,
                  std::span<const std::string_view> merges, bool whole_words,
                  std::optional<std::int32_t> unknown);

  /// Appends the tokens of `text`. Throws InputError for a byte without a token.
  void encode(std::string_view text, std::vector<std::int32_t>& tokens) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t result;
  };
  struct Workspace;

  void encode_word(std::string_view word, Workspace& workspace) const;

  Pretokenizer pretokenizer_;
  std::array<std::int32_t, 256> byte_tokens_;        // -1 where a byte has no token
  std::unordered_map<std::uint64_t, Merge> merges_;  // by the pair of tokens
  TokenMap words_;                                   // by bytes; empty unless whole words are taken
};

}  // namespace terse::examples
