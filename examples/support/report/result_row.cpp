#include "report/result_row.hpp"

namespace terse::examples {

std::string_view family_name(Family family) {
  switch (family) {
    case Family::eight_bit:
      return "8 or 16 bits";
    case Family::four_bit:
      return "4 bits";
    case Family::two_bit:
      return "2 bits";
    case Family::eviction:
      return "eviction";
    case Family::low_rank:
      return "low rank";
    case Family::composition:
      return "composition";
  }
  return "unknown";
}

std::string_view family_key(Family family) {
  switch (family) {
    case Family::eight_bit:
      return "eight_bit";
    case Family::four_bit:
      return "four_bit";
    case Family::two_bit:
      return "two_bit";
    case Family::eviction:
      return "eviction";
    case Family::low_rank:
      return "low_rank";
    case Family::composition:
      return "composition";
  }
  return "unknown";
}

void ResultRow::set_quality(const QualitySummary& summary) {
  mean_kl = summary.mean_kl;
  median_kl = summary.median_kl;
  p99_kl = summary.p99_kl;
  p999_kl = summary.p999_kl;
  perplexity = summary.perplexity;
  delta_log_perplexity = summary.delta_log_perplexity;
  delta_log_perplexity_error = summary.delta_log_perplexity_error;
  top1_agreement = summary.top1_agreement;
  scored_positions = summary.scored_positions;
}

std::string compiler_name() {
#if defined(__clang__)
  return "clang++ " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__) +
         "." + std::to_string(__clang_patchlevel__);
#elif defined(__GNUC__)
  return "g++ " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__) + "." +
         std::to_string(__GNUC_PATCHLEVEL__);
#else
  return "unknown";
#endif
}

}  // namespace terse::examples
