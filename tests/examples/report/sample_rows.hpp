#pragma once

#include <string>
#include <vector>

#include "report/result_row.hpp"

namespace terse_test {

/// A row with every column measured; larger `step` is smaller and worse.
inline terse::examples::ResultRow sample_row(const std::string& policy,
                                             terse::examples::Family family, double step) {
  terse::examples::ResultRow row;
  row.policy = policy;
  row.description = "keys, \"values\"";
  row.family = family;
  row.bits_per_element = 16 / (1 + step);
  row.bytes_per_token = 23040 / (1 + step);
  row.compression_ratio = 1 + step;
  row.mean_kl = 0.003 * step * step;
  row.median_kl = 0.4 * row.mean_kl;
  row.p99_kl = 9 * row.mean_kl;
  row.p999_kl = 40 * row.mean_kl;
  row.perplexity = 29.63 + step;
  row.delta_log_perplexity = 0.0312 * step;
  row.delta_log_perplexity_error = 0.0021;
  row.top1_agreement = 1 - 0.02 * step;
  row.passkey_digits_right = 1 - 0.1 * step;
  row.passkey_nll = 0.15 + 0.2 * step;
  row.tokens_per_second = 41.25;
  row.scored_positions = 12276;
  return row;
}

/// As many policies as the full table has, several of them at the same bytes.
inline std::vector<terse::examples::ResultRow> many_rows() {
  using terse::examples::Family;
  const std::vector<Family> families = {Family::eight_bit, Family::four_bit, Family::two_bit,
                                        Family::eviction,  Family::low_rank, Family::composition};
  std::vector<terse::examples::ResultRow> rows;
  for (int i = 0; i < 26; ++i) {
    const auto family = static_cast<std::size_t>(i % 6);
    const int step = i / 3;
    rows.push_back(
        sample_row("policy of some length " + std::to_string(i), families[family], 0.5 + step));
  }
  return rows;
}

}  // namespace terse_test
