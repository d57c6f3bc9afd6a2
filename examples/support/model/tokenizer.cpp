#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>
#include <variant>

#include "byte_pair_encoder.hpp"
#include "input_error.hpp"
#include "piece_encoder.hpp"
#include "quoted.hpp"
#include "unicode.hpp"

namespace terse::examples {
namespace {

/// Values of `tokenizer.ggml.token_type`.
enum class TokenType {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

constexpr std::string_view visible_space = "\u2581";

std::string replaced(std::string_view text, std::string_view what, std::string_view with) {
  std::string result;
  for (std::size_t found; (found = text.find(what)) != std::string_view::npos;) {
    result += text.substr(0, found);
    result += with;
    text.remove_prefix(found + what.size());
  }
  result += text;
  return result;
}

/// The byte that a spelling such as "<0x0A>" means.
std::optional<unsigned char> byte_of(std::string_view spelling) {
  static constexpr std::string_view digits = "0123456789ABCDEF";
  if (spelling.size() != 6 || !spelling.starts_with("<0x") || spelling[5] != '>') {
    return std::nullopt;
  }
  const std::size_t high = digits.find(spelling[3]);
  const std::size_t low = digits.find(spelling[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) {
    return std::nullopt;
  }
  return static_cast<unsigned char>(16 * high + low);
}

}  // namespace

struct Tokenizer::Vocabulary {
  struct Token {
    std::string spelling;
    std::string bytes;
    TokenType type = TokenType::normal;
  };

  std::vector<Token> tokens;
  TokenMap by_spelling;
  std::vector<std::int32_t> specials;  // those recognised in text, the longest spelling first
  std::optional<std::int32_t> bos;
  std::optional<std::int32_t> unknown;
  std::set<std::int32_t> ends;
  bool add_bos = false;
  bool add_space_prefix = false;  // SentencePiece: text starts as if a space came before it
  std::variant<std::monostate, BytePairEncoder, PieceEncoder> encoder;

  [[nodiscard]] const Token& at(std::int32_t token) const {
    if (token < 0 || static_cast<std::size_t>(token) >= tokens.size()) {
      throw InputError("token " + std::to_string(token) + " is outside the vocabulary");
    }
    return tokens[static_cast<std::size_t>(token)];
  }

  /// The tokens of these types, by spelling.
  [[nodiscard]] TokenMap select(std::initializer_list<TokenType> types) const {
    TokenMap map;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (std::find(types.begin(), types.end(), tokens[i].type) != types.end()) {
        map.emplace(tokens[i].spelling, static_cast<std::int32_t>(i));
      }
    }
    return map;
  }

  void read_tokens(const GgufFile& file);
  void read_special_tokens(const GgufFile& file);
  void make_byte_level(const GgufFile& file);
  void make_pieces(const GgufFile& file);
  void encode_plain(std::string_view text, bool at_start, std::vector<std::int32_t>& result) const;
  void encode_with_specials(std::string_view text, std::size_t first_special, SpecialTokens mode,
                            bool& at_start, std::vector<std::int32_t>& result) const;
};

void Tokenizer::Vocabulary::read_tokens(const GgufFile& file) {
  const std::vector<std::string_view>& spellings = file.strings("tokenizer.ggml.tokens");
  if (spellings.empty() || spellings.size() > (1u << 24)) {
    throw InputError("the vocabulary has " + std::to_string(spellings.size()) + " tokens");
  }
  std::vector<int> types(spellings.size(), static_cast<int>(TokenType::normal));
  if (file.has("tokenizer.ggml.token_type")) {
    types = file.integers("tokenizer.ggml.token_type");
  }
  if (types.size() != spellings.size()) {
    throw InputError("the vocabulary has not as many token types as tokens");
  }
  tokens.resize(spellings.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] < 1 || types[i] > 6) {
      throw InputError("token " + std::to_string(i) + " has type " + std::to_string(types[i]));
    }
    tokens[i].spelling = spellings[i];
    tokens[i].type = static_cast<TokenType>(types[i]);
    by_spelling.emplace(tokens[i].spelling, static_cast<std::int32_t>(i));
    const bool special = tokens[i].type == TokenType::control ||
                         tokens[i].type == TokenType::user_defined ||
                         tokens[i].type == TokenType::unknown;
    if (special && !tokens[i].spelling.empty()) {
      specials.push_back(static_cast<std::int32_t>(i));
    }
  }
  std::stable_sort(specials.begin(), specials.end(), [this](std::int32_t a, std::int32_t b) {
    return at(a).spelling.size() > at(b).spelling.size();
  });
}

void Tokenizer::Vocabulary::read_special_tokens(const GgufFile& file) {
  const auto token = [&](const char* key) -> std::optional<std::int32_t> {
    if (!file.has(key)) {
      return std::nullopt;
    }
    const int value = file.integer(key);
    static_cast<void>(at(value));
    return value;
  };
  bos = token("tokenizer.ggml.bos_token_id");
  unknown = token("tokenizer.ggml.unknown_token_id");
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (const auto end = token(key)) {
      ends.insert(*end);
    }
  }
  // Files often name one of several ends only.
  for (const char* name : {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"}) {
    const auto found = by_spelling.find(name);
    if (found != by_spelling.end() && at(found->second).type == TokenType::control) {
      ends.insert(found->second);
    }
  }
}

void Tokenizer::Vocabulary::make_byte_level(const GgufFile& file) {
  const std::string name = file.text("tokenizer.ggml.pre", "missing");
  const std::optional<Pretokenizer> pretokenizer = pretokenizer_by_name(name);
  if (!pretokenizer) {
    throw InputError("pre-tokeniser " + quoted(name) +
                     " is not supported; supported are smollm, gpt-2 and llama-bpe");
  }
  for (Token& token : tokens) {
    token.bytes =
        token.type == TokenType::normal ? bytes_of_spelling(token.spelling) : token.spelling;
  }
  const bool llama_bpe = *pretokenizer == Pretokenizer::llama_bpe;
  add_bos = file.boolean("tokenizer.ggml.add_bos_token", llama_bpe);
  encoder.emplace<BytePairEncoder>(*pretokenizer, select({TokenType::normal}),
                                   file.strings("tokenizer.ggml.merges"), llama_bpe, unknown);
}

void Tokenizer::Vocabulary::make_pieces(const GgufFile& file) {
  std::vector<float> scores = file.reals("tokenizer.ggml.scores");
  if (scores.size() != tokens.size()) {
    throw InputError("the vocabulary has not as many scores as tokens");
  }
  if (std::any_of(scores.begin(), scores.end(), [](float score) { return score != score; })) {
    throw InputError("a token's score is not a number");
  }
  std::array<std::int32_t, 256> byte_tokens;
  byte_tokens.fill(-1);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    Token& token = tokens[i];
    if (token.type == TokenType::byte) {
      const std::optional<unsigned char> byte = byte_of(token.spelling);
      if (!byte) {
        throw InputError("byte token " + quoted(token.spelling) + " names no byte");
      }
      byte_tokens[*byte] = static_cast<std::int32_t>(i);
      token.bytes.assign(1, static_cast<char>(*byte));
    } else {
      token.bytes = replaced(token.spelling, visible_space, " ");
    }
  }
  add_bos = file.boolean("tokenizer.ggml.add_bos_token", true);
  add_space_prefix = file.boolean("tokenizer.ggml.add_space_prefix", true);
  encoder.emplace<PieceEncoder>(select({TokenType::normal, TokenType::user_defined}),
                                std::move(scores), byte_tokens, unknown);
}

void Tokenizer::Vocabulary::encode_plain(std::string_view text, bool at_start,
                                         std::vector<std::int32_t>& result) const {
  if (const auto* byte_level = std::get_if<BytePairEncoder>(&encoder)) {
    byte_level->encode(text, result);
  } else {
    const std::string prefix(at_start && add_space_prefix ? " " : "");
    std::get<PieceEncoder>(encoder).encode(replaced(prefix + std::string(text), " ", visible_space),
                                           result);
  }
}

void Tokenizer::Vocabulary::encode_with_specials(std::string_view text, std::size_t first_special,
                                                 SpecialTokens mode, bool& at_start,
                                                 std::vector<std::int32_t>& result) const {
  // Longer spellings are looked for in the whole text before shorter ones.
  for (std::size_t i = first_special; i < specials.size(); ++i) {
    const Token& special = at(specials[i]);
    if (mode == SpecialTokens::as_text && special.type != TokenType::user_defined) {
      continue;
    }
    for (std::size_t found; (found = text.find(special.spelling)) != std::string_view::npos;) {
      encode_with_specials(text.substr(0, found), i + 1, mode, at_start, result);
      result.push_back(specials[i]);
      at_start = true;
      text.remove_prefix(found + special.spelling.size());
    }
  }
  if (!text.empty()) {
    encode_plain(text, at_start, result);
    at_start = false;
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Vocabulary> vocabulary) : vocabulary_(std::move(vocabulary)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const GgufFile& file) {
  auto vocabulary = std::make_unique<Vocabulary>();
  const std::string model = file.text("tokenizer.ggml.model");
  try {
    if (model != "gpt2" && model != "llama") {
      throw InputError("tokeniser " + quoted(model) +
                       " is not supported; supported are gpt2 and llama");
    }
    vocabulary->read_tokens(file);
    vocabulary->read_special_tokens(file);
    if (model == "gpt2") {
      vocabulary->make_byte_level(file);
    } else {
      vocabulary->make_pieces(file);
    }
    if (vocabulary->add_bos && !vocabulary->bos) {
      throw InputError("the vocabulary has no beginning-of-sequence token");
    }
  } catch (const InputError& error) {
    const std::string text = error.what();
    throw InputError(text.starts_with(file.path()) ? text : file.path() + ": " + text);
  }
  return Tokenizer(std::move(vocabulary));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special,
                                            AddBos add_bos) const {
  std::vector<std::int32_t> result;
  if (add_bos == AddBos::as_model_says && vocabulary_->add_bos) {
    result.push_back(vocabulary_->bos.value());
  }
  bool at_start = true;
  vocabulary_->encode_with_specials(text, 0, special, at_start, result);
  return result;
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens,
                              bool show_control_tokens) const {
  std::string text;
  bool drop_space = vocabulary_->add_space_prefix;
  for (const std::int32_t token : tokens) {
    if (vocabulary_->at(token).type == TokenType::control) {
      text += show_control_tokens ? vocabulary_->at(token).spelling : "";
      continue;
    }
    std::string_view bytes = token_bytes(token);
    if (drop_space && bytes.starts_with(' ')) {
      bytes.remove_prefix(1);
    }
    drop_space = false;
    text += bytes;
  }
  return text;
}

std::string_view Tokenizer::token_bytes(std::int32_t token) const {
  const Vocabulary::Token& found = vocabulary_->at(token);
  return found.type == TokenType::control ? std::string_view{} : found.bytes;
}

std::int32_t Tokenizer::vocabulary() const {
  return static_cast<std::int32_t>(vocabulary_->tokens.size());
}

std::optional<std::int32_t> Tokenizer::find_token(std::string_view spelling) const {
  const auto found = vocabulary_->by_spelling.find(spelling);
  return found != vocabulary_->by_spelling.end() ? std::optional(found->second) : std::nullopt;
}

bool Tokenizer::is_end_of_generation(std::int32_t token) const {
  return vocabulary_->ends.contains(token);
}

std::string StreamDecoder::push(std::int32_t token) {
  held_ += tokenizer_->token_bytes(token);
  const std::size_t complete = held_.size() - incomplete_utf8_bytes(held_);
  std::string text = held_.substr(0, complete);
  held_.erase(0, complete);
  return text;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

}  // namespace terse::examples
