#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "byte_pair_encoder.hpp"

namespace terse::examples {

/// BPE as in SentencePiece (Kudo and Richardson, arXiv 1808.06226): neighbours merge where their
/// joint text is a piece, the piece of the highest score first; characters that are no piece become
/// bytes.
class PieceEncoder {
 public:
  /// \param pieces the tokens that text may become, by spelling
  /// \param scores by token
  /// \param byte_tokens the token of each byte, -1 where there is none
  /// \param unknown what a character becomes that has neither a piece nor byte tokens
  PieceEncoder(TokenMap pieces, std::vector<float> scores,
               const std::array<std::int32_t, 256>& byte_tokens,
               std::optional<std::int32_t> unknown);

  /// Appends the tokens of `text`, in which spaces are already written as U+2581.
  void encode(std::string_view text, std::vector<std::int32_t>& tokens) const;

 private:
  void append_bytes(std::string_view bytes, std::vector<std::int32_t>& tokens) const;

  TokenMap pieces_;
  std::vector<float> scores_;
  std::array<std::int32_t, 256> byte_tokens_;
  std::optional<std::int32_t> unknown_;
};

}  // namespace terse::examples
