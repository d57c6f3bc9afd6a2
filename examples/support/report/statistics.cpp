#include "report/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

namespace terse::examples {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return nan;
  for (const double value : values) {
    if (std::isnan(value)) return nan;
  }
  const double place = std::clamp(share, 0.0, 1.0) * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(below);
  std::nth_element(values.begin(), middle, values.end());
  const double low = *middle;
  const double fraction = place - static_cast<double>(below);
  if (fraction == 0) return low;
  const double high = *std::min_element(middle + 1, values.end());
  return low + fraction * (high - low);
}

double mean(std::span<const double> values) {
  if (values.empty()) return nan;
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double median(std::vector<double> values) { return quantile(std::move(values), 0.5); }

PairedDelta paired_delta(const std::vector<std::vector<double>>& windows, int block_tokens) {
  struct Block {
    double mean;
    double tokens;
  };
  const auto full_tokens = static_cast<std::size_t>(std::max(1, block_tokens));
  std::vector<Block> blocks;
  double tokens = 0;
  double sum = 0;
  for (const std::vector<double>& window : windows) {
    for (std::size_t first = 0; first < window.size(); first += full_tokens) {
      const std::size_t count = std::min(full_tokens, window.size() - first);
      const double block_mean = mean(std::span(window).subspan(first, count));
      const auto block_size = static_cast<double>(count);
      blocks.push_back({block_mean, block_size});
      tokens += block_size;
      sum += block_mean * block_size;
    }
  }
  PairedDelta result{nan, nan, static_cast<long long>(blocks.size())};
  if (blocks.empty()) return result;
  result.mean = sum / tokens;
  if (blocks.size() < 2) return result;
  double variance = 0;
  for (const Block& block : blocks) {
    const double deviation = block.tokens / tokens * (block.mean - result.mean);
    variance += deviation * deviation;
  }
  const auto count = static_cast<double>(blocks.size());
  result.standard_error = std::sqrt(variance * count / (count - 1));
  return result;
}

double perplexity(std::span<const double> nll) { return std::exp(mean(nll)); }

QualitySummary summarise(const std::vector<std::vector<TokenScore>>& windows, int block_tokens) {
  std::vector<double> kl;
  std::vector<double> nll_reference;
  std::vector<double> nll;
  std::vector<std::vector<double>> deltas;
  std::size_t agreeing = 0;
  for (const std::vector<TokenScore>& window : windows) {
    std::vector<double>& delta = deltas.emplace_back();
    for (const TokenScore& score : window) {
      kl.push_back(score.kl);
      nll_reference.push_back(score.nll_reference);
      nll.push_back(score.nll);
      delta.push_back(score.nll - score.nll_reference);
      agreeing += score.same_top1 ? 1U : 0U;
    }
  }
  const PairedDelta delta = paired_delta(deltas, block_tokens);
  QualitySummary summary;
  summary.scored_positions = static_cast<long long>(kl.size());
  summary.mean_kl = mean(kl);
  summary.median_kl = median(kl);
  summary.p99_kl = quantile(kl, 0.99);
  summary.p999_kl = summary.scored_positions < least_positions_for_p999 ? nan : quantile(kl, 0.999);
  summary.perplexity_reference = perplexity(nll_reference);
  summary.perplexity = perplexity(nll);
  summary.delta_log_perplexity = delta.mean;
  summary.delta_log_perplexity_error = delta.standard_error;
  summary.top1_agreement =
      kl.empty() ? nan : static_cast<double>(agreeing) / static_cast<double>(kl.size());
  return summary;
}

}  // namespace terse::examples
