#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace terse::examples {

/// What stands for a byte that is not part of valid UTF-8: neither letter, number nor white space.
inline constexpr char32_t invalid_character = 0xffffffff;

struct DecodedCharacter {
  char32_t code;      ///< the code point, or `invalid_character`
  std::size_t bytes;  ///< at least 1
};

/// The character at the beginning of `text`, which must not be empty. An invalid sequence
/// (overlong, surrogate, above U+10FFFF or cut short) is taken one byte at a time.
[[nodiscard]] DecodedCharacter decode_utf8(std::string_view text);

/// The UTF-8 form of a code point below U+110000.
[[nodiscard]] std::string encode_utf8(char32_t code);

/// The bytes at the end of `text` that begin a UTF-8 character which is not complete yet; 0 to 3.
[[nodiscard]] std::size_t incomplete_utf8_bytes(std::string_view text);

[[nodiscard]] bool is_letter(char32_t code);      ///< general category L
[[nodiscard]] bool is_number(char32_t code);      ///< general category N
[[nodiscard]] bool is_whitespace(char32_t code);  ///< property White_Space

}  // namespace terse::examples
