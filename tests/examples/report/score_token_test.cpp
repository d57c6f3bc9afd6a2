#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include "report/statistics.hpp"
#include "support/catch.hpp"

using terse::examples::score_token;
using terse::examples::TokenScore;

namespace {

struct Exact {
  long double kl = 0;
  long double nll_reference = 0;
  long double nll = 0;
};

// The definitions, term by term in extended precision.
Exact exact_score(const std::vector<float>& reference, const std::vector<float>& policy,
                  std::size_t target) {
  const auto log_sum = [](const std::vector<float>& logits) {
    long double maximum = logits[0];
    for (const float value : logits) maximum = std::max<long double>(maximum, value);
    long double sum = 0;
    for (const float value : logits) sum += std::exp(value - maximum);
    return maximum + std::log(sum);
  };
  const long double reference_sum = log_sum(reference);
  const long double policy_sum = log_sum(policy);
  Exact exact;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const long double log_p = reference[i] - reference_sum;
    exact.kl += std::exp(log_p) * (log_p - (policy[i] - policy_sum));
  }
  exact.nll_reference = reference_sum - reference[target];
  exact.nll = policy_sum - policy[target];
  return exact;
}

std::vector<float> random_logits(std::size_t count, float scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<float> logits(count);
  for (float& value : logits) {
    // Sums of uniforms, the same on every standard library.
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(generator() >> 8U) / 8388608.0F - 1.0F;
    value = scale * sum;
  }
  return logits;
}

std::vector<float> disturbed(std::vector<float> logits, float size, unsigned seed) {
  const std::vector<float> noise = random_logits(logits.size(), size, seed);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] += noise[i];
  return logits;
}

TokenScore score(const std::vector<float>& reference, const std::vector<float>& policy,
                 int target) {
  return score_token(reference.data(), policy.data(), static_cast<int>(reference.size()), target);
}

}  // namespace

TEST_CASE("score_token agrees with the definitions at every size", "[report]") {
  for (const std::size_t count :
       {1U, 2U, 7U, 15U, 16U, 17U, 31U, 33U, 1023U, 1024U, 1025U, 49152U}) {
    CAPTURE(count);
    const auto reference = random_logits(count, 3, 1);
    const auto policy = disturbed(reference, 0.5F, 2);
    const std::size_t target = count / 2;
    const Exact exact = exact_score(reference, policy, target);
    const TokenScore result = score(reference, policy, static_cast<int>(target));
    CHECK(result.kl == Approx(static_cast<double>(exact.kl)).epsilon(1e-11).margin(1e-14));
    CHECK(result.nll_reference ==
          Approx(static_cast<double>(exact.nll_reference)).epsilon(1e-13).margin(1e-14));
    CHECK(result.nll == Approx(static_cast<double>(exact.nll)).epsilon(1e-13).margin(1e-14));
  }
}

TEST_CASE("a divergence of 1e-9 does not drown", "[report]") {
  const auto reference = random_logits(49152, 3, 3);
  for (const float size : {1e-3F, 1e-4F, 3e-5F, 1e-5F}) {
    const auto policy = disturbed(reference, size, 4);
    const auto exact = static_cast<double>(exact_score(reference, policy, 0).kl);
    const double kl = score(reference, policy, 0).kl;
    CAPTURE(size, exact, kl);
    CHECK(exact > 0);
    CHECK(std::abs(kl - exact) < 1e-5 * exact + 3e-15);
  }
}

TEST_CASE("equal rows, and rows equal up to a constant, have no divergence", "[report]") {
  const auto reference = random_logits(4096, 3, 5);
  CHECK(score(reference, reference, 7).kl == 0);
  std::vector<float> rounded = reference;
  for (float& value : rounded) value = std::round(value * 64) / 64;
  std::vector<float> shifted = rounded;
  for (float& value : shifted) value += 512;
  const TokenScore result = score(rounded, shifted, 7);
  CHECK(result.kl < 1e-14);
  CHECK(result.nll == Approx(result.nll_reference).epsilon(1e-12));
  CHECK(result.same_top1);
}

TEST_CASE("a certain token and far logits stay finite", "[report]") {
  std::vector<float> reference(1000, -3e4F);
  reference[3] = 3e4F;
  std::vector<float> policy(1000, 0.0F);
  const TokenScore result = score(reference, policy, 3);
  CHECK(result.kl == Approx(std::log(1000.0)));
  CHECK(result.nll_reference == 0);
  CHECK(result.nll == Approx(std::log(1000.0)));
  const TokenScore reversed = score(policy, reference, 4);
  CHECK(reversed.nll == Approx(6e4));
  CHECK(std::isfinite(reversed.kl));
  CHECK(reversed.kl > 100);
}

TEST_CASE("masked tokens do not spoil the sums", "[report]") {
  auto reference = random_logits(100, 2, 6);
  auto policy = disturbed(reference, 0.1F, 7);
  const TokenScore all = score(reference, policy, 1);
  reference.insert(reference.end(), 28, -std::numeric_limits<float>::infinity());
  policy.insert(policy.end(), 28, -std::numeric_limits<float>::infinity());
  const TokenScore masked = score(reference, policy, 1);
  CHECK(masked.kl == Approx(all.kl).epsilon(1e-10));
  CHECK(masked.nll == Approx(all.nll));
}

TEST_CASE("NaN and infinity are not hidden", "[report]") {
  const auto good = random_logits(64, 2, 8);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const std::size_t place : {std::size_t{0}, std::size_t{40}, std::size_t{63}}) {
      auto row = good;
      row[place] = bad;
      CHECK(std::isnan(score(row, good, 1).kl));
      CHECK(std::isnan(score(good, row, 1).kl));
      CHECK(std::isnan(score(good, row, 1).nll));
    }
  }
}

TEST_CASE("top-1 agreement takes the first of equals", "[report]") {
  std::vector<float> reference(3000, 0.0F);
  std::vector<float> policy(3000, 0.0F);
  CHECK(score(reference, policy, 0).same_top1);
  reference[2500] = 1;
  CHECK_FALSE(score(reference, policy, 0).same_top1);
  policy[2500] = 2;
  CHECK(score(reference, policy, 0).same_top1);
  policy[2501] = 2;
  CHECK(score(reference, policy, 0).same_top1);
  policy[100] = 2;
  CHECK_FALSE(score(reference, policy, 0).same_top1);
}
