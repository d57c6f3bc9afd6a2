#include "report/table.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <utility>

#include "report/format.hpp"

namespace terse::examples {
namespace {

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find('\n', start), text.size());
    lines.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return lines;
}

std::string padded(const std::string& text, std::size_t columns, Alignment alignment) {
  const std::string space(columns - std::min(columns, display_columns(text)), ' ');
  return alignment == Alignment::left ? text + space : space + text;
}

std::string markdown_cell(const std::string& text) {
  std::string cell;
  for (const char c : text) {
    if (c == '|') cell += '\\';
    cell += c == '\n' ? ' ' : c;
  }
  return cell;
}

}  // namespace

void Table::add_column(std::string header, Alignment alignment) {
  columns_.push_back({std::move(header), alignment});
}

void Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    throw std::logic_error("a table row needs one cell for each column");
  }
  rows_.push_back(std::move(cells));
}

std::string Table::plain_text() const {
  std::vector<std::vector<std::string>> headers;
  std::vector<std::size_t> widths;
  std::size_t header_lines = 0;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    headers.push_back(split_lines(columns_[c].header));
    header_lines = std::max(header_lines, headers.back().size());
    std::size_t width = 0;
    for (const std::string& line : headers.back()) width = std::max(width, display_columns(line));
    for (const auto& row : rows_) width = std::max(width, display_columns(row[c]));
    widths.push_back(width);
  }
  std::string out;
  const auto append_line = [&](const std::function<std::string(std::size_t)>& cell) {
    std::string line;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (c > 0) line += "  ";
      line += padded(cell(c), widths[c], columns_[c].alignment);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  for (std::size_t i = 0; i < header_lines; ++i) {
    append_line([&](std::size_t c) {
      // Short headers sit on the rule.
      const std::size_t missing = header_lines - headers[c].size();
      return i < missing ? std::string() : headers[c][i - missing];
    });
  }
  append_line([&](std::size_t c) { return std::string(widths[c], '-'); });
  for (const auto& row : rows_) append_line([&](std::size_t c) { return row[c]; });
  return out;
}

std::string Table::markdown() const {
  std::string head = "|";
  std::string rule = "|";
  for (const Column& column : columns_) {
    head.append(" ").append(markdown_cell(column.header)).append(" |");
    rule += column.alignment == Alignment::left ? "---|" : "---:|";
  }
  std::string out = head + "\n" + rule + "\n";
  for (const auto& row : rows_) {
    out += "|";
    for (const std::string& cell : row) out.append(" ").append(markdown_cell(cell)).append(" |");
    out += "\n";
  }
  return out;
}

Table result_table(const std::vector<ResultRow>& rows) {
  struct Shown {
    const char* header;
    double ResultRow::*value;
    std::function<std::string(double)> format;
  };
  const auto fixed = [](int decimals) {
    return [decimals](double value) { return format_fixed(value, decimals); };
  };
  const auto percent = [](double value) { return format_fixed(100 * value, 1); };
  const auto divergence = [](double value) {
    // A tiny value says how many zeros it has, no more.
    return std::abs(value) < 1e-3 ? format_significant(value, 2) : format_significant(value, 3);
  };
  const auto grouped = [](double value) {
    return std::isfinite(value) ? format_grouped(std::llround(value)) : format_fixed(value, 0);
  };
  const auto rate = [grouped](double value) {
    return value < 100 ? format_significant(value, 3) : grouped(value);
  };
  const auto change = [](double value) { return format_fixed(value, 4, true); };
  const std::vector<Shown> shown = {
      {"bits/\nelem", &ResultRow::bits_per_element, fixed(2)},
      {"bytes/\ntoken", &ResultRow::bytes_per_token, grouped},
      {"ratio", &ResultRow::compression_ratio, fixed(2)},
      {"read\n%", &ResultRow::share_read, percent},
      {"KL\nmean", &ResultRow::mean_kl, divergence},
      {"KL\nmedian", &ResultRow::median_kl, divergence},
      {"KL\n99%", &ResultRow::p99_kl, divergence},
      {"KL\n99.9%", &ResultRow::p999_kl, divergence},
      {"perpl.", &ResultRow::perplexity, fixed(2)},
      {"ln ppl\nchange", &ResultRow::delta_log_perplexity, change},
      {"its\nerror", &ResultRow::delta_log_perplexity_error, fixed(4)},
      {"top-1\n%", &ResultRow::top1_agreement, percent},
      {"key\n%", &ResultRow::passkey_digits_right, percent},
      {"key\nnll", &ResultRow::passkey_nll, fixed(2)},
      {"tok/s", &ResultRow::tokens_per_second, rate},
  };
  std::vector<Shown> used;
  for (const Shown& column : shown) {
    const bool is_measured = std::any_of(rows.begin(), rows.end(), [&](const ResultRow& row) {
      return !std::isnan(row.*column.value);
    });
    if (is_measured) used.push_back(column);
  }
  Table table;
  table.add_column("policy", Alignment::left);
  for (const Shown& column : used) table.add_column(column.header, Alignment::right);
  for (const ResultRow& row : rows) {
    std::vector<std::string> cells = {row.policy};
    for (const Shown& column : used) cells.push_back(column.format(row.*column.value));
    table.add_row(std::move(cells));
  }
  return table;
}

}  // namespace terse::examples
