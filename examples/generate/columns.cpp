#include "columns.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "report/utf8.hpp"

namespace terse::examples {

namespace {

bool is_in(char32_t c, std::span<const std::array<char32_t, 2>> ranges) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [c](const auto& range) { return c >= range[0] && c <= range[1]; });
}

std::size_t columns_of(char32_t c) {
  // The large blocks only: enough to keep columns straight.
  static constexpr std::array<char32_t, 2> narrow[] = {
      {0x300, 0x36f}, {0x200b, 0x200f}, {0x20d0, 0x20ff}, {0xfe00, 0xfe0f}};
  static constexpr std::array<char32_t, 2> wide[] = {
      {0x1100, 0x115f},   {0x2e80, 0xa4cf},   {0xac00, 0xd7a3},  {0xf900, 0xfaff},
      {0xfe30, 0xfe6f},   {0xff00, 0xff60},   {0xffe0, 0xffe6},  {0x1f300, 0x1f64f},
      {0x1f680, 0x1f6ff}, {0x1f900, 0x1faff}, {0x20000, 0x3fffd}};
  return is_in(c, narrow) ? 0 : is_in(c, wide) ? 2 : 1;
}

/// Bytes of the longest start of `text` that fits, at least one character.
std::size_t fitting_bytes(std::string_view text, std::size_t columns) {
  std::size_t end = 0;
  for (std::size_t used = 0; end < text.size();) {
    const DecodedCharacter c = decode_utf8(text.substr(end));
    used += columns_of(c.code);
    if (used > columns && end > 0) break;
    end += c.bytes;
  }
  return end;
}

/// One cell of a line, padded, in colour from the mark on. `is_past_mark` carries over lines.
std::string cell(const std::string& line, std::size_t columns, bool coloured, bool* is_past_mark) {
  constexpr std::string_view colour = "\x1b[1;33m", plain = "\x1b[0m";
  std::string out = line;
  if (coloured) {
    const std::size_t from = *is_past_mark ? 0 : line.find(difference_mark);
    if (from != std::string::npos && !line.empty()) {
      *is_past_mark = true;
      out.insert(from, colour);
      out += plain;
    }
  }
  return out + std::string(columns - std::min(columns, terminal_columns(line)), ' ');
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const DecodedCharacter c = decode_utf8(text.substr(at));
    const bool is_control = (c.code < 0x20 && c.code != '\n') ||
                            (c.code >= 0x7f && c.code < 0xa0) ||
                            (c.code >= 0x202a && c.code <= 0x202e);
    if (is_control) {
      out += ' ';
    } else if (c.code == invalid_character) {
      out += "\xEF\xBF\xBD";
    } else {
      out += text.substr(at, c.bytes);
    }
    at += c.bytes;
  }
  return out;
}

std::size_t terminal_columns(std::string_view text) {
  std::size_t columns = 0;
  for (std::size_t at = 0; at < text.size();) {
    const DecodedCharacter c = decode_utf8(text.substr(at));
    columns += columns_of(c.code);
    at += c.bytes;
  }
  return columns;
}

std::vector<std::string> wrap_columns(std::string_view text, std::size_t columns) {
  std::vector<std::string> lines(1);
  std::size_t used = 0;
  const auto new_line = [&] {
    lines.emplace_back();
    used = 0;
  };
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] == '\n' || text[at] == ' ') {
      if (text[at] == '\n') new_line();
      ++at;
      continue;
    }
    std::string_view word =
        text.substr(at, std::min(text.find_first_of(" \n", at), text.size()) - at);
    at += word.size();
    while (!word.empty()) {
      const std::size_t width = terminal_columns(word);
      const std::size_t space = used > 0 ? 1 : 0;
      if (used + space + width <= columns) {
        if (space > 0) lines.back() += ' ';
        lines.back() += word;
        used += space + width;
        word = {};
      } else if (used > 0) {
        new_line();
      } else {
        const std::size_t bytes = fitting_bytes(word, columns);
        lines.back() = word.substr(0, bytes);
        word.remove_prefix(bytes);
        new_line();
      }
    }
  }
  return lines;
}

std::string side_by_side(const std::vector<std::string>& titles,
                         const std::vector<std::string>& texts, std::size_t columns,
                         bool coloured) {
  constexpr std::string_view bar = " \xE2\x94\x82 ";  // U+2502
  constexpr std::string_view rule = "\xE2\x94\x80", cross = "\xE2\x94\x80\xE2\x94\xBC\xE2\x94\x80";
  const std::size_t width = (std::max<std::size_t>(columns, 23) - 3) / 2;
  std::string out;
  const auto append = [&](const std::vector<std::string>& contents, bool has_colour) {
    const auto left = wrap_columns(contents[0], width), right = wrap_columns(contents[1], width);
    bool is_left_past = false, is_right_past = false;
    for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
      out += cell(i < left.size() ? left[i] : "", width, has_colour, &is_left_past);
      out += bar;
      out += cell(i < right.size() ? right[i] : "", 0, has_colour, &is_right_past);
      out.erase(out.find_last_not_of(' ') + 1);
      out += '\n';
    }
  };
  append(titles, false);
  for (std::size_t i = 0; i < 2 * width; ++i) {
    if (i == width) out += cross;
    out += rule;
  }
  out += '\n';
  append(texts, coloured);
  return out;
}

}  // namespace terse::examples
