#include "piece_encoder.hpp"

#include <queue>
#include <utility>

#include "input_error.hpp"
#include "unicode.hpp"

namespace terse::examples {
namespace {

/// A stretch of the text; the stretches form a linked list. Empty once merged into its left
/// neighbour.
struct Symbol {
  std::size_t offset;
  std::size_t bytes;
  int previous;
  int next;
};

struct Candidate {
  float score;
  int left;
  int right;
  std::size_t bytes;

  /// Of equal scores the leftmost goes first.
  bool operator<(const Candidate& other) const {
    return score < other.score || (score == other.score && left > other.left);
  }
};

}  // namespace

PieceEncoder::PieceEncoder(TokenMap pieces, std::vector<float> scores,
                           const std::array<std::int32_t, 256>& byte_tokens,
                           std::optional<std::int32_t> unknown)
    : pieces_(std::move(pieces)),
      scores_(std::move(scores)),
      byte_tokens_(byte_tokens),
      unknown_(unknown) {}

void PieceEncoder::encode(std::string_view text, std::vector<std::int32_t>& tokens) const {
  std::vector<Symbol> symbols;
  for (std::size_t offset = 0; offset < text.size();) {
    const std::size_t bytes = decode_utf8(text.substr(offset)).bytes;
    const int index = static_cast<int>(symbols.size());
    symbols.push_back({offset, bytes, index - 1, index + 1});
    offset += bytes;
  }
  if (symbols.empty()) {
    return;
  }
  symbols.back().next = -1;

  const auto symbol = [&symbols](int i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  std::priority_queue<Candidate> candidates;
  const auto propose = [&](int left, int right) {
    if (left < 0 || right < 0) {
      return;
    }
    const std::size_t bytes = symbol(left).bytes + symbol(right).bytes;
    const auto found = pieces_.find(text.substr(symbol(left).offset, bytes));
    if (found != pieces_.end()) {
      const float score = scores_[static_cast<std::size_t>(found->second)];
      candidates.push({score, left, right, bytes});
    }
  };
  for (int i = 1; i < static_cast<int>(symbols.size()); ++i) {
    propose(i - 1, i);
  }
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbol(best.left);
    Symbol& right = symbol(best.right);
    // A candidate is void once either side has merged with something else.
    if (left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != best.bytes) {
      continue;
    }
    left.bytes = best.bytes;
    right.bytes = 0;
    left.next = right.next;
    if (right.next >= 0) {
      symbol(right.next).previous = best.left;
    }
    propose(left.previous, best.left);
    propose(best.left, left.next);
  }
  for (int i = 0; i >= 0; i = symbol(i).next) {
    const std::string_view piece = text.substr(symbol(i).offset, symbol(i).bytes);
    const auto found = pieces_.find(piece);
    if (found != pieces_.end()) {
      tokens.push_back(found->second);
    } else {
      append_bytes(piece, tokens);
    }
  }
}

void PieceEncoder::append_bytes(std::string_view bytes, std::vector<std::int32_t>& tokens) const {
  std::vector<std::int32_t> found;
  for (const char byte : bytes) {
    const std::int32_t token = byte_tokens_[static_cast<unsigned char>(byte)];
    if (token < 0) {
      if (!unknown_) {
        throw InputError("the vocabulary has no token for a character of the text");
      }
      found.assign(1, *unknown_);
      break;
    }
    found.push_back(token);
  }
  tokens.insert(tokens.end(), found.begin(), found.end());
}

}  // namespace terse::examples
