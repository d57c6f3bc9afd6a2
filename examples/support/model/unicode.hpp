#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "../report/utf8.hpp"

namespace terse::examples {

/// The UTF-8 form of a code point below U+110000.
[[nodiscard]] std::string encode_utf8(char32_t code);

/// The bytes at the end of `text` that begin a UTF-8 character which is not complete yet; 0 to 3.
[[nodiscard]] std::size_t incomplete_utf8_bytes(std::string_view text);

// An `invalid_character` is none of these.
[[nodiscard]] bool is_letter(char32_t code);      ///< general category L
[[nodiscard]] bool is_number(char32_t code);      ///< general category N
[[nodiscard]] bool is_whitespace(char32_t code);  ///< property White_Space

}  // namespace terse::examples
