#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace terse::examples {

/// What stands for a byte that is not part of valid UTF-8: no code point.
inline constexpr char32_t invalid_character = 0xffffffff;

struct DecodedCharacter {
  char32_t code;      ///< the code point, or `invalid_character`
  std::size_t bytes;  ///< at least 1
};

/// Bytes of the character that a lead byte announces; 0 for a byte that leads none.
[[nodiscard]] constexpr std::size_t announced_bytes(std::uint32_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/// The character at the beginning of `text`, which must not be empty. An invalid sequence
/// (overlong, surrogate, above U+10FFFF or cut short) is taken one byte at a time.
[[nodiscard]] constexpr DecodedCharacter decode_utf8(std::string_view text) {
  const auto byte = [text](std::size_t i) {
    return std::uint32_t{static_cast<unsigned char>(text[i])};
  };
  const std::size_t bytes = announced_bytes(byte(0));
  if (bytes == 1) return {byte(0), 1};
  if (bytes == 0 || bytes > text.size()) return {invalid_character, 1};
  std::uint32_t code = byte(0) & (0x7fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0u) != 0x80u) return {invalid_character, 1};
    code = (code << 6) | (byte(i) & 0x3fu);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (overlong || surrogate || code > 0x10ffff) return {invalid_character, 1};
  return {code, bytes};
}

}  // namespace terse::examples
