#include "pretokenizer.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include "unicode.hpp"

namespace terse::examples {
namespace {

enum class Kind : unsigned char { letter, number, whitespace, other, end };

struct Character {
  char32_t code;
  std::size_t offset;  // of its first byte in the text
  Kind kind;
};

Kind kind_of(char32_t code) {
  if (is_letter(code)) {
    return Kind::letter;
  }
  if (is_number(code)) {
    return Kind::number;
  }
  return is_whitespace(code) ? Kind::whitespace : Kind::other;
}

/// The characters of a text and, behind them, one of kind `end`.
std::vector<Character> characters_of(std::string_view text) {
  std::vector<Character> characters;
  characters.reserve(text.size() + 1);
  for (std::size_t offset = 0; offset < text.size();) {
    const DecodedCharacter decoded = decode_utf8(text.substr(offset));
    characters.push_back({decoded.code, offset, kind_of(decoded.code)});
    offset += decoded.bytes;
  }
  characters.push_back({0, text.size(), Kind::end});
  return characters;
}

bool is_line_end(const Character& character) {
  return character.code == '\r' || character.code == '\n';
}

/// Characters of a contraction's ending that follow an apostrophe: 0, 1 or 2.
template <typename CodeAt>
std::size_t contraction_length(CodeAt code_at) {
  const char32_t first = code_at(0);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') {
    return 1;
  }
  const char32_t second = code_at(1);
  const bool two = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                   (first == 'l' && second == 'l');
  return two ? 2 : 0;
}

/// Finds the end of the word that begins at a character, by the alternatives of a regular
/// expression in their order. Only characters before `limit` exist for it.
class WordFinder {
 public:
  WordFinder(const std::vector<Character>& characters, std::size_t limit)
      : characters_(characters), limit_(limit) {}

  /// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  [[nodiscard]] std::size_t gpt2(std::size_t begin) const {
    if (code(begin) == '\'') {
      const std::size_t length =
          contraction_length([&](std::size_t i) { return code(begin + 1 + i); });
      if (length > 0) {
        return begin + 1 + length;
      }
    }
    const std::size_t after_space = begin + (code(begin) == ' ' ? 1 : 0);
    const Kind run = kind(after_space);
    if (run != Kind::whitespace && run != Kind::end) {
      return end_of(run, after_space);
    }
    return end_of_whitespace(begin);
  }

  /// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
  /// |\s*[\r\n]+|\s+(?!\S)|\s+
  [[nodiscard]] std::size_t llama_bpe(std::size_t begin) const {
    if (code(begin) == '\'') {
      const std::size_t length = contraction_length([&](std::size_t i) {
        const char32_t letter = code(begin + 1 + i);
        return letter >= 'A' && letter <= 'Z' ? letter + ('a' - 'A') : letter;
      });
      if (length > 0) {
        return begin + 1 + length;
      }
    }
    if (kind(begin) == Kind::letter) {
      return end_of(Kind::letter, begin);
    }
    if (kind(begin) != Kind::number && !is_line_end(characters_[begin]) &&
        kind(begin + 1) == Kind::letter) {
      return end_of(Kind::letter, begin + 1);
    }
    if (kind(begin) == Kind::number) {
      return std::min(begin + 3, end_of(Kind::number, begin));
    }
    const std::size_t after_space = begin + (code(begin) == ' ' ? 1 : 0);
    if (kind(after_space) == Kind::other) {
      return end_of_line_ends(end_of(Kind::other, after_space));
    }
    const std::size_t whitespace_end = end_of(Kind::whitespace, begin);
    for (std::size_t last = whitespace_end; last > begin; --last) {
      if (is_line_end(characters_[last - 1])) {
        return last;
      }
    }
    return end_of_whitespace(begin);
  }

 private:
  [[nodiscard]] char32_t code(std::size_t i) const { return i < limit_ ? characters_[i].code : 0; }
  [[nodiscard]] Kind kind(std::size_t i) const {
    return i < limit_ ? characters_[i].kind : Kind::end;
  }
  [[nodiscard]] std::size_t end_of(Kind run, std::size_t i) const {
    while (kind(i) == run) {
      ++i;
    }
    return i;
  }
  [[nodiscard]] std::size_t end_of_line_ends(std::size_t i) const {
    while (i < limit_ && is_line_end(characters_[i])) {
      ++i;
    }
    return i;
  }
  /// White space before a word leaves its last character to that word, unless it is the only one.
  [[nodiscard]] std::size_t end_of_whitespace(std::size_t begin) const {
    const std::size_t end = end_of(Kind::whitespace, begin);
    return kind(end) != Kind::end && end - begin > 1 ? end - 1 : end;
  }

  const std::vector<Character>& characters_;
  std::size_t limit_;
};

/// The end of the number character at `begin`, or else of everything up to the next one.
std::size_t end_of_stretch(const std::vector<Character>& characters, std::size_t begin) {
  std::size_t end = begin + 1;
  if (characters[begin].kind != Kind::number) {
    while (characters[end].kind != Kind::number && characters[end].kind != Kind::end) {
      ++end;
    }
  }
  return end;
}

}  // namespace

std::optional<Pretokenizer> pretokenizer_by_name(std::string_view name) {
  struct Entry {
    std::string_view name;
    Pretokenizer pretokenizer;
  };
  static constexpr std::array<Entry, 5> entries = {{{"gpt-2", Pretokenizer::gpt2},
                                                    {"smollm", Pretokenizer::smollm},
                                                    {"llama-bpe", Pretokenizer::llama_bpe},
                                                    {"llama-v3", Pretokenizer::llama_bpe},
                                                    {"llama3", Pretokenizer::llama_bpe}}};
  for (const Entry& entry : entries) {
    if (entry.name == name) {
      return entry.pretokenizer;
    }
  }
  return std::nullopt;
}

std::vector<std::string_view> split_words(Pretokenizer pretokenizer, std::string_view text) {
  const std::vector<Character> characters = characters_of(text);
  const std::size_t count = characters.size() - 1;
  std::vector<std::string_view> words;
  for (std::size_t begin = 0; begin < count;) {
    const std::size_t limit =
        pretokenizer == Pretokenizer::smollm ? end_of_stretch(characters, begin) : count;
    const WordFinder finder(characters, limit);
    while (begin < limit) {
      const std::size_t end =
          pretokenizer == Pretokenizer::llama_bpe ? finder.llama_bpe(begin) : finder.gpt2(begin);
      const std::size_t offset = characters[begin].offset;
      words.push_back(text.substr(offset, characters[end].offset - offset));
      begin = end;
    }
  }
  return words;
}

}  // namespace terse::examples
