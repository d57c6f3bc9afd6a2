#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace terse::examples {

/// The shortest decimal text that reads back as exactly `value`; "nan", "inf", "-inf" otherwise.
[[nodiscard]] std::string format_exact(double value);

/// `value` with `decimals` digits after the point, "-" for NaN. `plus` writes the sign of positive
/// values too. A result that rounds to zero carries no minus sign.
[[nodiscard]] std::string format_fixed(double value, int decimals, bool plus = false);

/// `value` with `digits` significant digits: plain from 0.0001 to below 10^6, "1.2e-05" outside,
/// "-" for NaN.
[[nodiscard]] std::string format_significant(double value, int digits);

/// Digits in groups of three: 23040 -> "23,040".
[[nodiscard]] std::string format_grouped(long long value);

/// Number of code points, which is the number of terminal columns for the text written here.
[[nodiscard]] std::size_t display_columns(std::string_view utf8);

/// Breaks `text` at spaces into lines of at most `columns` (a longer word keeps its own line);
/// newlines in the text are kept.
[[nodiscard]] std::vector<std::string> wrap_text(std::string_view text, std::size_t columns);

}  // namespace terse::examples
