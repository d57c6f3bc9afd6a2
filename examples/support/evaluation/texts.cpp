#include "evaluation/texts.hpp"

#include <cstddef>
#include <string_view>

#include "model/mapped_file.hpp"
#include "report/input_error.hpp"
#include "report/sha256.hpp"

namespace terse::examples {

namespace {

/// Bytes of prose that hold so many tokens with room to spare.
constexpr std::size_t prose_bytes_per_token = 24;

/// What follows the first `skip` bytes of a file, from the next whole character on.
std::string_view text_after(const MappedFile& file, const std::string& path, std::int64_t skip) {
  const auto bytes = file.bytes();
  if (skip >= static_cast<std::int64_t>(bytes.size())) {
    throw InputError("the text '" + path + "' is too short: it has " +
                     std::to_string(bytes.size()) + " bytes, and its first " +
                     std::to_string(skip) + " are skipped");
  }
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  text.remove_prefix(static_cast<std::size_t>(skip));
  while (!text.empty() && (static_cast<unsigned char>(text.front()) & 0xc0u) == 0x80u) {
    text.remove_prefix(1);
  }
  return text;
}

/// More than `count` tokens of the beginning of `text`, so that none of those is cut short, or all
/// there are. The whole text is encoded only where its tokens are long, as in rules of dashes.
std::vector<std::int32_t> first_tokens(const Tokenizer& tokenizer, std::string_view text,
                                       std::size_t count) {
  std::size_t bytes = count * prose_bytes_per_token;
  std::vector<std::int32_t> tokens = tokenizer.encode(text.substr(0, bytes));
  while (tokens.size() <= count && bytes < text.size()) {
    bytes *= 4;
    tokens = tokenizer.encode(text.substr(0, bytes));
  }
  return tokens;
}

}  // namespace

TextPart read_text(const Tokenizer& tokenizer, const std::string& path, std::int64_t skip_bytes,
                   std::int64_t first, std::int64_t count) {
  const std::int64_t last = first + count;
  const MappedFile file(path);
  TextPart part;
  part.tokens =
      first_tokens(tokenizer, text_after(file, path, skip_bytes), static_cast<std::size_t>(last));
  if (static_cast<std::int64_t>(part.tokens.size()) < last) {
    throw InputError("the text '" + path + "' is too short: " + std::to_string(last) +
                     " tokens are needed after the first " + std::to_string(skip_bytes) +
                     " bytes, " + std::to_string(part.tokens.size()) + " are there");
  }
  part.tokens.resize(static_cast<std::size_t>(last));
  part.tokens.erase(part.tokens.begin(), part.tokens.begin() + first);
  part.info.name = file_name(path);
  part.info.sha256 = sha256_of_file(path);
  part.info.skip_chars = skip_bytes;
  part.info.token_ranges = {{.first = first, .last = last}};
  return part;
}

std::vector<std::vector<std::int32_t>> read_windows(const Tokenizer& tokenizer,
                                                    const std::vector<std::string>& paths,
                                                    std::int64_t skip_bytes, int windows,
                                                    int tokens) {
  std::vector<std::vector<std::int32_t>> all;
  for (const std::string& path : paths) {
    const TextPart text = read_text(tokenizer, path, skip_bytes, 0, std::int64_t{windows} * tokens);
    for (int i = 0; i < windows; ++i) {
      const auto begin = text.tokens.begin() + std::ptrdiff_t{i} * tokens;
      all.emplace_back(begin, begin + tokens);
    }
  }
  return all;
}

std::string file_name(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace terse::examples
