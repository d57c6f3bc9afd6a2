#include "unicode.hpp"

#include <algorithm>
#include <array>

namespace terse::examples {
namespace {

struct Range {
  std::uint32_t first;
  std::uint32_t last;
};

#include "unicode_tables.inc"

template <std::size_t N>
bool contains(const std::array<Range, N>& ranges, char32_t code) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), code,
                       [](char32_t c, const Range& range) { return c < range.first; });
  return after != ranges.begin() && code <= std::prev(after)->last;
}

std::uint32_t byte_at(std::string_view text, std::size_t index) {
  return static_cast<unsigned char>(text[index]);
}

/// Bytes of the character that a lead byte announces; 0 for a byte that leads none.
std::size_t announced_bytes(std::uint32_t lead) {
  if (lead < 0x80) {
    return 1;
  }
  if (lead < 0xc2 || lead > 0xf4) {
    return 0;
  }
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

}  // namespace

DecodedCharacter decode_utf8(std::string_view text) {
  const std::uint32_t lead = byte_at(text, 0);
  const std::size_t bytes = announced_bytes(lead);
  if (bytes == 1) {
    return {lead, 1};
  }
  if (bytes == 0 || bytes > text.size()) {
    return {invalid_character, 1};
  }
  std::uint32_t code = lead & (0x7fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    const std::uint32_t next = byte_at(text, i);
    if ((next & 0xc0u) != 0x80u) {
      return {invalid_character, 1};
    }
    code = (code << 6) | (next & 0x3fu);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (overlong || surrogate || code > 0x10ffff) {
    return {invalid_character, 1};
  }
  return {code, bytes};
}

std::string encode_utf8(char32_t code) {
  const auto byte = [](char32_t value) { return static_cast<char>(value); };
  const auto tail = [&](int shift) { return byte(0x80u | ((code >> shift) & 0x3fu)); };
  if (code < 0x80) {
    return {byte(code)};
  }
  if (code < 0x800) {
    return {byte(0xc0u | (code >> 6)), tail(0)};
  }
  if (code < 0x10000) {
    return {byte(0xe0u | (code >> 12)), tail(6), tail(0)};
  }
  return {byte(0xf0u | (code >> 18)), tail(12), tail(6), tail(0)};
}

std::size_t incomplete_utf8_bytes(std::string_view text) {
  for (std::size_t count = 1; count <= std::min<std::size_t>(3, text.size()); ++count) {
    const std::uint32_t byte = byte_at(text, text.size() - count);
    if ((byte & 0xc0u) != 0x80u) {
      return announced_bytes(byte) > count ? count : 0;
    }
  }
  return 0;
}

bool is_letter(char32_t code) {
  if (code < 0x80) {
    return (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z');
  }
  return contains(letters, code);
}

bool is_number(char32_t code) {
  if (code < 0x80) {
    return code >= '0' && code <= '9';
  }
  return contains(numbers, code);
}

bool is_whitespace(char32_t code) {
  return (code >= 0x9 && code <= 0xd) || code == 0x20 || code == 0x85 || code == 0xa0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 ||
         code == 0x202f || code == 0x205f || code == 0x3000;
}

}  // namespace terse::examples
