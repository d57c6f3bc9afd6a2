#include "report/statistics.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using terse::examples::mean;
using terse::examples::median;
using terse::examples::paired_delta;
using terse::examples::PairedDelta;
using terse::examples::perplexity;
using terse::examples::QualitySummary;
using terse::examples::quantile;
using terse::examples::summarise;
using terse::examples::TokenScore;

TEST_CASE("quantile interpolates as type 7", "[report]") {
  CHECK(quantile({4, 1, 3, 2}, 0) == 1);
  CHECK(quantile({4, 1, 3, 2}, 1) == 4);
  CHECK(quantile({4, 1, 3, 2}, 0.5) == Approx(2.5));
  CHECK(quantile({4, 1, 3, 2}, 0.25) == Approx(1.75));
  CHECK(quantile({10, 20, 30, 40, 50}, 0.9) == Approx(46));
  CHECK(quantile({7}, 0.3) == 7);
  CHECK(median({5, 1, 9}) == 5);
  CHECK(std::isnan(quantile({}, 0.5)));
  CHECK(std::isnan(quantile({1, std::nan(""), 2}, 0.5)));
  CHECK(mean(std::vector<double>{1, 2, 6}) == Approx(3));
  CHECK(std::isnan(mean(std::vector<double>{})));
}

TEST_CASE("paired_delta's error comes from block means", "[report]") {
  // Blocks of two: means 1, 2, 6; their mean 3, variance (4 + 1 + 9) / 2 = 7.
  const std::vector<std::vector<double>> delta = {{0, 2, 1, 3, 6, 6}};
  const PairedDelta result = paired_delta(delta, 2);
  CHECK(result.mean == Approx(3));
  CHECK(result.standard_error == Approx(std::sqrt(7.0 / 3)));
  CHECK(result.blocks == 3);
}

TEST_CASE("blocks do not reach across windows and weigh by their length", "[report]") {
  const std::vector<std::vector<double>> windows = {{1, 1, 1}, {4}};
  const PairedDelta result = paired_delta(windows, 3);
  CHECK(result.blocks == 2);
  CHECK(result.mean == Approx(1.75));
  // sqrt(2 ((3/4 * 0.75)^2 + (1/4 * 2.25)^2))
  CHECK(result.standard_error == Approx(std::sqrt(2 * 2 * 0.5625 * 0.5625)));
  const std::vector<std::vector<double>> halves = {{1, 2}, {3, 4}};
  CHECK(paired_delta(halves, 100).blocks == 2);
}

TEST_CASE("paired_delta without enough blocks has no error", "[report]") {
  const std::vector<std::vector<double>> few = {{1, 2}};
  CHECK(paired_delta(few, 64).mean == Approx(1.5));
  CHECK(std::isnan(paired_delta(few, 64).standard_error));
  CHECK(std::isnan(paired_delta({}, 64).mean));
}

TEST_CASE("perplexity is exp of the mean", "[report]") {
  CHECK(perplexity(std::vector<double>{std::log(2.0), std::log(8.0)}) == Approx(4));
}

TEST_CASE("summarise covers all windows", "[report]") {
  std::vector<std::vector<TokenScore>> windows(2);
  for (int i = 0; i < 4; ++i) {
    const double value = i;
    windows[static_cast<std::size_t>(i / 2)].push_back({value, 1.0, 1.0 + 0.1 * value, i != 3});
  }
  const QualitySummary summary = summarise(windows, 1);
  CHECK(summary.scored_positions == 4);
  CHECK(summary.mean_kl == Approx(1.5));
  CHECK(summary.median_kl == Approx(1.5));
  CHECK(summary.p99_kl == Approx(2.97));
  CHECK(std::isnan(summary.p999_kl));
  CHECK(summary.perplexity_reference == Approx(std::exp(1.0)));
  CHECK(summary.perplexity == Approx(std::exp(1.15)));
  CHECK(summary.delta_log_perplexity == Approx(0.15));
  CHECK(summary.delta_log_perplexity_error == Approx(std::sqrt(0.05 / 3 / 4)));
  CHECK(summary.top1_agreement == Approx(0.75));
}

TEST_CASE("the 99.9 % quantile needs 10,000 positions", "[report]") {
  std::vector<std::vector<TokenScore>> windows = {
      std::vector<TokenScore>(9999, TokenScore{0.5, 1, 1, true})};
  CHECK(std::isnan(summarise(windows, 64).p999_kl));
  windows.push_back({TokenScore{0.5, 1, 1, true}});
  CHECK(summarise(windows, 64).p999_kl == Approx(0.5));
}

TEST_CASE("summarise of nothing is NaN, not zero", "[report]") {
  const QualitySummary summary = summarise({}, 64);
  CHECK(summary.scored_positions == 0);
  CHECK(std::isnan(summary.mean_kl));
  CHECK(std::isnan(summary.top1_agreement));
}
