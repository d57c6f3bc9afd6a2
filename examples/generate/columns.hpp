#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace terse::examples {

/// Stands before the first token in which two texts differ.
inline constexpr std::string_view difference_mark = "\xE2\x96\xB6";  // U+25B6

/// `text` without what could move a terminal's cursor: control characters become spaces (newlines
/// stay), bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] std::string printable(std::string_view text);

/// Terminal columns of printable text: 2 for East Asian wide characters, 0 for combining ones.
[[nodiscard]] std::size_t terminal_columns(std::string_view text);

/// Breaks printable text at spaces, and inside words that are wider than `columns`; newlines are
/// kept, other runs of spaces become one.
[[nodiscard]] std::vector<std::string> wrap_columns(std::string_view text, std::size_t columns);

/// Two titled texts side by side in `columns` terminal columns. `coloured` shows everything from a
/// text's difference mark on in colour.
[[nodiscard]] std::string side_by_side(const std::vector<std::string>& titles,
                                       const std::vector<std::string>& texts, std::size_t columns,
                                       bool coloured);

}  // namespace terse::examples
