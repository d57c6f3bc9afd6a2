#include "byte_pair_encoder.hpp"

#include <queue>
#include <tuple>

#include "input_error.hpp"
#include "quoted.hpp"
#include "unicode.hpp"

namespace terse::examples {
namespace {

constexpr std::int32_t no_token = -1;

bool is_printed_as_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/// The character that stands for each byte: printable Latin-1 for itself, the others from U+0100
/// on.
const std::array<char32_t, 256>& byte_characters() {
  static const std::array<char32_t, 256> table = [] {
    std::array<char32_t, 256> characters{};
    char32_t next = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
      characters[byte] = is_printed_as_itself(byte) ? byte : next++;
    }
    return characters;
  }();
  return table;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
         static_cast<std::uint32_t>(right);
}

}  // namespace

std::string bytes_of_spelling(std::string_view spelling) {
  static const std::unordered_map<char32_t, char> bytes = [] {
    std::unordered_map<char32_t, char> map;
    for (unsigned byte = 0; byte < 256; ++byte) {
      map.emplace(byte_characters()[byte], static_cast<char>(byte));
    }
    return map;
  }();
  std::string result;
  while (!spelling.empty()) {
    const DecodedCharacter character = decode_utf8(spelling);
    const auto found = bytes.find(character.code);
    if (found != bytes.end()) {
      result += found->second;
    } else {
      result += spelling.substr(0, character.bytes);
    }
    spelling.remove_prefix(character.bytes);
  }
  return result;
}

/// The symbols of one word, a linked list over the positions of its bytes, and the merges that
/// wait.
struct BytePairEncoder::Workspace {
  struct Symbol {
    std::int32_t token;
    int previous;
    int next;
  };
  struct Candidate {
    Merge merge;
    int left;
    int right;
    std::int32_t left_token;
    std::int32_t right_token;
    bool operator>(const Candidate& other) const {
      return std::tie(merge.rank, left) > std::tie(other.merge.rank, other.left);
    }
  };

  std::vector<Symbol> symbols;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
};

BytePairEncoder::BytePairEncoder(Pretokenizer pretokenizer, const TokenMap& spellings,
                                 std::span<const std::string_view> merges, bool whole_words,
                                 std::optional<std::int32_t> unknown)
    : pretokenizer_(pretokenizer) {
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto found = spellings.find(encode_utf8(byte_characters()[byte]));
    byte_tokens_[byte] = found != spellings.end() ? found->second : unknown.value_or(no_token);
  }
  merges_.reserve(merges.size());
  std::int32_t rank = 0;
  for (const std::string_view merge : merges) {
    // A spelling may hold a space only as its first character, if at all.
    const std::size_t space = merge.find(' ', 1);
    const std::string_view left = merge.substr(0, space);
    const std::string_view right =
        space == std::string_view::npos ? std::string_view{} : merge.substr(space + 1);
    const auto left_found = spellings.find(left);
    const auto right_found = spellings.find(right);
    const auto result = spellings.find(std::string(left) + std::string(right));
    if (left_found == spellings.end() || right_found == spellings.end() ||
        result == spellings.end()) {
      throw InputError("the merge " + quoted(merge) + " does not join two tokens to a third");
    }
    merges_.emplace(pair_key(left_found->second, right_found->second), Merge{rank, result->second});
    ++rank;
  }
  if (whole_words) {
    for (const auto& [spelling, token] : spellings) {
      words_.emplace(bytes_of_spelling(spelling), token);
    }
  }
}

void BytePairEncoder::encode(std::string_view text, std::vector<std::int32_t>& tokens) const {
  Workspace workspace;
  for (const std::string_view word : split_words(pretokenizer_, text)) {
    const auto whole = words_.find(word);
    if (whole != words_.end()) {
      tokens.push_back(whole->second);
      continue;
    }
    encode_word(word, workspace);
    for (int i = 0; i >= 0; i = workspace.symbols[static_cast<std::size_t>(i)].next) {
      tokens.push_back(workspace.symbols[static_cast<std::size_t>(i)].token);
    }
  }
}

void BytePairEncoder::encode_word(std::string_view word, Workspace& workspace) const {
  auto& symbols = workspace.symbols;
  auto& candidates = workspace.candidates;
  const auto symbol = [&symbols](int i) -> Workspace::Symbol& {
    return symbols[static_cast<std::size_t>(i)];
  };
  const auto propose = [&](int left, int right) {
    if (left < 0 || right < 0) {
      return;
    }
    const std::int32_t left_token = symbol(left).token;
    const std::int32_t right_token = symbol(right).token;
    const auto found = merges_.find(pair_key(left_token, right_token));
    if (found != merges_.end()) {
      candidates.push({found->second, left, right, left_token, right_token});
    }
  };

  symbols.clear();
  const int count = static_cast<int>(word.size());
  for (int i = 0; i < count; ++i) {
    const unsigned byte = static_cast<unsigned char>(word[static_cast<std::size_t>(i)]);
    if (byte_tokens_[byte] == no_token) {
      throw InputError("the vocabulary has no token for byte " + std::to_string(byte));
    }
    symbols.push_back({byte_tokens_[byte], i - 1, i + 1 < count ? i + 1 : -1});
  }
  for (int i = 1; i < count; ++i) {
    propose(i - 1, i);
  }
  while (!candidates.empty()) {
    const Workspace::Candidate best = candidates.top();
    candidates.pop();
    // A candidate is void once either side has merged with something else.
    if (symbol(best.left).token != best.left_token || symbol(best.left).next != best.right ||
        symbol(best.right).token != best.right_token) {
      continue;
    }
    symbol(best.left).token = best.merge.result;
    symbol(best.right).token = no_token;
    const int next = symbol(best.right).next;
    symbol(best.left).next = next;
    if (next >= 0) {
      symbol(next).previous = best.left;
    }
    propose(symbol(best.left).previous, best.left);
    propose(best.left, next);
  }
}

}  // namespace terse::examples
