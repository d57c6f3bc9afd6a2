/// The divergence of next-token distributions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// KL(exact || other) of the distributions that two rows `[vocabulary]` of logits stand for, in
/// nats, summed in double. NaN where a logit is NaN or +infinity; -infinity is a probability of 0
/// in both.
[[nodiscard]] inline double divergence_of_logits(const float* exact, const float* other,
                                                 std::int64_t vocabulary) noexcept {
  double exact_peak = -INFINITY, peak = -INFINITY;
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    exact_peak = std::max(exact_peak, static_cast<double>(exact[i]));
    peak = std::max(peak, static_cast<double>(other[i]));
  }
  double exact_sum = 0, sum = 0, weighted = 0;
  for (std::int64_t i = 0; i < vocabulary; ++i) {
    const double a = static_cast<double>(exact[i]) - exact_peak;
    const double b = static_cast<double>(other[i]) - peak;
    const double p = std::exp(a);
    exact_sum += p;
    sum += std::exp(b);
    if (!(p == 0)) weighted += p * (a - b);
  }
  const double kl = weighted / exact_sum - (std::log(exact_sum) - std::log(sum));
  return kl < 0 ? 0 : kl;  // rounding may leave a divergence of zero a hair below it
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
