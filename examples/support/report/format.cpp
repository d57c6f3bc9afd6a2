#include "report/format.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace terse::examples {
namespace {

std::string to_text(double value, std::chars_format format, int precision) {
  std::array<char, 512> buffer{};
  const auto result =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format, precision);
  return {buffer.data(), result.ptr};
}

}  // namespace

std::string format_exact(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 64> buffer{};
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return {buffer.data(), result.ptr};
}

std::string format_fixed(double value, int decimals, bool plus) {
  if (std::isnan(value)) return "-";
  if (std::isinf(value)) return value > 0 ? (plus ? "+inf" : "inf") : "-inf";
  std::string text = to_text(value, std::chars_format::fixed, decimals);
  const bool is_zero = text.find_first_of("123456789") == std::string::npos;
  if (is_zero && text.front() == '-') text.erase(0, 1);
  if (plus && !is_zero && text.front() != '-') text.insert(0, 1, '+');
  return text;
}

std::string format_significant(double value, int digits) {
  if (std::isnan(value)) return "-";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (value == 0) return "0";
  // Rounding first decides the exponent: 0.9996 with three digits is 1.00, not 0.9996 -> 1.000.
  std::string scientific = to_text(value, std::chars_format::scientific, digits - 1);
  const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (exponent < -4 || exponent >= 6) return scientific;
  return to_text(value, std::chars_format::fixed, std::max(0, digits - 1 - exponent));
}

std::string format_grouped(long long value) {
  std::string text = std::to_string(value);
  const std::size_t first_digit = value < 0 ? 1 : 0;
  for (std::size_t place = text.size(); place > first_digit + 3;) {
    place -= 3;
    text.insert(place, 1, ',');
  }
  return text;
}

std::size_t display_columns(std::string_view utf8) {
  return static_cast<std::size_t>(std::count_if(utf8.begin(), utf8.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  }));
}

std::vector<std::string> wrap_text(std::string_view text, std::size_t columns) {
  std::vector<std::string> lines;
  std::size_t line_start = 0;
  while (line_start <= text.size()) {
    const std::size_t line_end = std::min(text.find('\n', line_start), text.size());
    const std::string_view line = text.substr(line_start, line_end - line_start);
    lines.emplace_back();
    for (std::size_t word_start = 0; word_start < line.size();) {
      const std::size_t word_end = std::min(line.find(' ', word_start), line.size());
      const std::string_view word = line.substr(word_start, word_end - word_start);
      if (!word.empty()) {
        std::string& current = lines.back();
        if (current.empty()) {
          current = word;
        } else if (display_columns(current) + 1 + display_columns(word) <= columns) {
          current.append(" ").append(word);
        } else {
          lines.emplace_back(word);
        }
      }
      word_start = word_end + 1;
    }
    line_start = line_end + 1;
  }
  return lines;
}

}  // namespace terse::examples
