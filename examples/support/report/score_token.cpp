#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "report/statistics.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define TERSE_REPORT_X86 1
#endif

namespace terse::examples {
namespace {

// The loops below run over independent lanes so that a compiler vectorises them without being
// allowed to reorder sums; the lane count is fixed, so is the order of summation.
constexpr int lanes = 16;
constexpr int chunk_tokens = 1024;
// exp(-700) is still a normal double, and no sum of probabilities notices it.
constexpr double least_log = -700.0;

struct Peak {
  float value;
  int index;
};

struct Sums {
  double reference;   // sum of exp(reference - peak)
  double policy;      // sum of exp(policy - peak)
  double difference;  // sum of exp(reference - peak) * (reference - policy, both minus their peak)
};

[[gnu::always_inline]] inline float chunk_maximum(const float* logits, int first, int last) {
  std::array<float, lanes> best;
  best.fill(-std::numeric_limits<float>::infinity());
  int i = first;
  for (; i + lanes <= last; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) {
      const auto at = static_cast<std::size_t>(lane);
      best[at] = logits[i + lane] > best[at] ? logits[i + lane] : best[at];
    }
  }
  for (; i < last; ++i) best[0] = logits[i] > best[0] ? logits[i] : best[0];
  float maximum = best[0];
  for (const float value : best) maximum = value > maximum ? value : maximum;
  return maximum;
}

[[gnu::always_inline]] inline Peak find_peak(const float* logits, int vocabulary) {
  Peak peak{-std::numeric_limits<float>::infinity(), 0};
  int peak_chunk = 0;
  for (int first = 0; first < vocabulary; first += chunk_tokens) {
    const int last = first + chunk_tokens < vocabulary ? first + chunk_tokens : vocabulary;
    const float maximum = chunk_maximum(logits, first, last);
    if (maximum > peak.value) {
      peak.value = maximum;
      peak_chunk = first;
    }
  }
  peak.index = peak_chunk;
  while (peak.index + 1 < vocabulary && logits[peak.index] != peak.value) ++peak.index;
  return peak;
}

// exp(x) for x in [-700, 0], relative error below 5e-16; NaN stays NaN. x = k ln 2 + r with
// |r| <= ln 2 / 2, exp(r) by its series, 2^k by writing the exponent.
[[gnu::always_inline]] inline double exp_nonpositive(double x) {
  constexpr double log2_e = 1.4426950408889634074;
  constexpr double ln2_high = 6.93147180369123816490e-01;  // the low 32 bits are zero
  constexpr double ln2_low = 1.90821492927058770002e-10;
  constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x * log2_e + round_to_integer;
  const double k = shifted - round_to_integer;
  const double r = (x - k * ln2_high) - k * ln2_low;
  // 1/n!, n = 13 ... 0, by Horner's rule.
  double power = 1.0 / 6227020800.0;
  power = power * r + 1.0 / 479001600.0;
  power = power * r + 1.0 / 39916800.0;
  power = power * r + 1.0 / 3628800.0;
  power = power * r + 1.0 / 362880.0;
  power = power * r + 1.0 / 40320.0;
  power = power * r + 1.0 / 5040.0;
  power = power * r + 1.0 / 720.0;
  power = power * r + 1.0 / 120.0;
  power = power * r + 1.0 / 24.0;
  power = power * r + 1.0 / 6.0;
  power = power * r + 0.5;
  power = power * r + 1.0;
  power = power * r + 1.0;
  const std::uint64_t exponent =
      (std::bit_cast<std::uint64_t>(shifted) << 52U) + (std::uint64_t{1023} << 52U);
  return power * std::bit_cast<double>(exponent);
}

[[gnu::always_inline]] inline Sums accumulate(const float* reference, double reference_peak,
                                              const float* policy, double policy_peak,
                                              int vocabulary) {
  std::array<double, lanes> sum_reference{};
  std::array<double, lanes> sum_policy{};
  std::array<double, lanes> sum_difference{};
  const auto add = [&](int token, int lane) __attribute__((always_inline)) {
    const auto at = static_cast<std::size_t>(lane);
    // Written so that NaN passes through.
    double log_reference = static_cast<double>(reference[token]) - reference_peak;
    double log_policy = static_cast<double>(policy[token]) - policy_peak;
    log_reference = log_reference < least_log ? least_log : log_reference;
    log_policy = log_policy < least_log ? least_log : log_policy;
    const double weight = exp_nonpositive(log_reference);
    sum_reference[at] += weight;
    sum_policy[at] += exp_nonpositive(log_policy);
    sum_difference[at] += weight * (log_reference - log_policy);
  };
  int i = 0;
  for (; i + lanes <= vocabulary; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i < vocabulary; ++i, ++lane) add(i, lane);
  Sums sums{0, 0, 0};
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    sums.reference += sum_reference[lane];
    sums.policy += sum_policy[lane];
    sums.difference += sum_difference[lane];
  }
  return sums;
}

[[gnu::always_inline]] inline TokenScore score(const float* reference, const float* policy,
                                               int vocabulary, int target) {
  const Peak reference_peak = find_peak(reference, vocabulary);
  const Peak policy_peak = find_peak(policy, vocabulary);
  const double reference_maximum = reference_peak.value;
  const double policy_maximum = policy_peak.value;
  const Sums sums = accumulate(reference, reference_maximum, policy, policy_maximum, vocabulary);
  const double log_sum_reference = std::log(sums.reference);
  const double log_sum_policy = std::log(sums.policy);
  TokenScore result{};
  const double kl = sums.difference / sums.reference - (log_sum_reference - log_sum_policy);
  // Rounding may leave a divergence of zero a hair below it.
  result.kl = kl < 0 ? 0 : kl;
  result.nll_reference =
      log_sum_reference - (static_cast<double>(reference[target]) - reference_maximum);
  result.nll = log_sum_policy - (static_cast<double>(policy[target]) - policy_maximum);
  result.same_top1 = reference_peak.index == policy_peak.index;
  return result;
}

#ifdef TERSE_REPORT_X86
__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))) TokenScore score_avx512(
    const float* reference, const float* policy, int vocabulary, int target) {
  return score(reference, policy, vocabulary, target);
}

__attribute__((target("avx2,fma"))) TokenScore score_avx2(const float* reference,
                                                          const float* policy, int vocabulary,
                                                          int target) {
  return score(reference, policy, vocabulary, target);
}
#endif

TokenScore score_portable(const float* reference, const float* policy, int vocabulary, int target) {
  return score(reference, policy, vocabulary, target);
}

using ScoreFunction = TokenScore (*)(const float*, const float*, int, int);

ScoreFunction choose_score() {
#ifdef TERSE_REPORT_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return score_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return score_avx2;
#endif
  return score_portable;
}

}  // namespace

TokenScore score_token(const float* reference_logits, const float* logits, int vocabulary,
                       int target) {
  static const ScoreFunction chosen = choose_score();
  return chosen(reference_logits, logits, vocabulary, target);
}

}  // namespace terse::examples
