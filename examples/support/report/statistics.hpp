#pragma once

#include <span>
#include <vector>

namespace terse::examples {

/// How one predicted token differs between the reference run and a run under a policy. Natural
/// logarithms throughout.
struct TokenScore {
  double kl;             ///< KL(reference || policy) over the whole vocabulary
  double nll_reference;  ///< -ln p_reference(target)
  double nll;            ///< -ln p(target)
  bool same_top1;        ///< both put the same token first (the lowest index among equals)
};

/// Compares two rows [vocabulary] of logits; log-probabilities serve as well, being logits up to a
/// constant. Everything is accumulated in double with the maximum subtracted, so that a divergence
/// of 1e-9 keeps six digits. A row with NaN or +infinity gives NaN; -infinity counts as a
/// probability of exp(-700). `target` lies in [0, vocabulary).
[[nodiscard]] TokenScore score_token(const float* reference_logits, const float* logits,
                                     int vocabulary, int target);

/// The quantile with linear interpolation between order statistics (type 7, the default of R and
/// NumPy), `share` in [0, 1]. NaN for no values or a NaN among them.
[[nodiscard]] double quantile(std::vector<double> values, double share);
[[nodiscard]] double mean(std::span<const double> values);
[[nodiscard]] double median(std::vector<double> values);

struct PairedDelta {
  double mean = 0;            ///< mean of the differences
  double standard_error = 0;  ///< of that mean; NaN with fewer than two blocks
  long long blocks = 0;
};

/// Mean of paired differences at the successive positions of each window. Neighbouring positions
/// are correlated, so the error comes from the means of blocks of `block_tokens` positions (ddof
/// 1); no block reaches across two windows, and a window's shorter last block weighs by its length.
[[nodiscard]] PairedDelta paired_delta(const std::vector<std::vector<double>>& windows,
                                       int block_tokens);

/// exp(mean negative log-likelihood).
[[nodiscard]] double perplexity(std::span<const double> nll);

/// A 99.9 % quantile of fewer positions than this would rest on a handful of tokens.
inline constexpr long long least_positions_for_p999 = 10000;

struct QualitySummary {
  long long scored_positions = 0;
  double mean_kl = 0;
  double median_kl = 0;
  double p99_kl = 0;
  double p999_kl = 0;  ///< NaN below `least_positions_for_p999`
  double perplexity_reference = 0;
  double perplexity = 0;
  double delta_log_perplexity = 0;
  double delta_log_perplexity_error = 0;
  double top1_agreement = 0;  ///< share in [0, 1]
};

/// Everything the table says about the scored positions of all windows together.
[[nodiscard]] QualitySummary summarise(const std::vector<std::vector<TokenScore>>& windows,
                                       int block_tokens);

}  // namespace terse::examples
