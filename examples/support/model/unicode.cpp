#include "unicode.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

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

}  // namespace

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
    const std::uint32_t byte = static_cast<unsigned char>(text[text.size() - count]);
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
