#include "texts.hpp"

#include <algorithm>
#include <cstddef>

#include "model/mapped_file.hpp"
#include "report/input_error.hpp"
#include "report/sha256.hpp"

namespace terse::examples {

namespace {

/// Bytes of text that surely hold so many tokens.
constexpr std::int64_t bytes_per_token_limit = 24;

std::string read_bytes(const std::string& path, std::int64_t skip, std::int64_t limit) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (skip >= size) {
    throw InputError("the text '" + path + "' is too short: it has " + std::to_string(size) +
                     " bytes, and its first " + std::to_string(skip) + " are skipped");
  }
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + skip,
                         static_cast<std::size_t>(std::min(limit, size - skip)));
  // Start at a character, not inside one.
  std::size_t start = 0;
  while (start < text.size() && (static_cast<unsigned char>(text[start]) & 0xc0u) == 0x80u) ++start;
  return text.substr(start);
}

}  // namespace

TextPart read_text(const Tokenizer& tokenizer, const std::string& path, std::int64_t skip_bytes,
                   std::int64_t first, std::int64_t count) {
  const std::int64_t last = first + count;
  TextPart part;
  part.tokens = tokenizer.encode(read_bytes(path, skip_bytes, last * bytes_per_token_limit));
  if (static_cast<std::int64_t>(part.tokens.size()) < last) {
    throw InputError("the text '" + path + "' is too short: " + std::to_string(last) +
                     " tokens are needed after the first " + std::to_string(skip_bytes) +
                     " bytes, " + std::to_string(part.tokens.size()) + " are there");
  }
  part.tokens.resize(static_cast<std::size_t>(last));
  part.tokens.erase(part.tokens.begin(), part.tokens.begin() + first);
  part.info.name = part.info.path = file_name(path);
  part.info.sha256 = sha256_of_file(path);
  part.info.skip_chars = skip_bytes;
  part.info.token_ranges = {{.first = first, .last = last}};
  return part;
}

std::string file_name(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace terse::examples
