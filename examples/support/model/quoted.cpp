#include "quoted.hpp"

namespace terse::examples {
namespace {

/// Bytes of a text that is shown whole, and of both ends of a longer one.
constexpr std::size_t whole_bytes = 80;
constexpr std::size_t end_bytes = 32;

void append_printable(std::string_view text, std::string* out) {
  constexpr std::string_view hex = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      *out += c;
    } else {
      out->append("\\x").append(1, hex[byte >> 4u]).append(1, hex[byte & 15u]);
    }
  }
}

}  // namespace

std::string quoted(std::string_view text) {
  std::string out(1, '"');
  if (text.size() <= whole_bytes) {
    append_printable(text, &out);
  } else {
    append_printable(text.substr(0, end_bytes), &out);
    out += "...";
    append_printable(text.substr(text.size() - end_bytes), &out);
  }
  return out += '"';
}

}  // namespace terse::examples
