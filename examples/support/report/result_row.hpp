#pragma once

#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "report/statistics.hpp"

namespace terse::examples {

/// What a policy mainly does; a plot's colours and markers.
enum class Family { eight_bit, four_bit, two_bit, eviction, low_rank, composition };

/// "8 or 16 bits", "4 bits", ...
[[nodiscard]] std::string_view family_name(Family family);
/// A name for programs: "eight_bit", "four_bit", ...
[[nodiscard]] std::string_view family_key(Family family);

inline constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();

/// One policy's line of the results. NaN means not measured: an empty cell, null in JSON.
struct ResultRow {
  std::string policy;
  std::string description;
  Family family = Family::eight_bit;
  double bits_per_element = not_measured;
  double bytes_per_token = not_measured;
  double compression_ratio = not_measured;  ///< 16-bit bytes / bytes
  double share_read = not_measured;         ///< of the stored bytes, by attention
  double mean_kl = not_measured;            ///< nats
  double median_kl = not_measured;
  double p99_kl = not_measured;
  double p999_kl = not_measured;
  double perplexity = not_measured;
  double delta_log_perplexity = not_measured;
  double delta_log_perplexity_error = not_measured;
  double top1_agreement = not_measured;        ///< share in [0, 1]
  double passkey_digits_right = not_measured;  ///< share in [0, 1]
  double passkey_nll = not_measured;           ///< nats per digit
  double tokens_per_second = not_measured;
  long long scored_positions = 0;

  /// Takes over the columns that come from scored positions.
  void set_quality(const QualitySummary& summary);
};

/// Tokens [first, last) of a text.
struct TokenRange {
  long long first = 0;
  long long last = 0;
  long long scored_first = 0;  ///< predictions made at [scored_first, scored_last) are scored
  long long scored_last = 0;   ///< 0: none are
};

struct TextInfo {
  std::string name;          ///< the file's, without its folder
  std::string sha256;        ///< of the whole file
  long long skip_chars = 0;  ///< bytes before token 0
  std::vector<TokenRange> token_ranges;
};

/// What a reader needs to repeat the run.
struct RunInfo {
  std::string program;
  std::string model_name;
  std::string model_path;
  std::string model_sha256;
  std::vector<TextInfo> texts;
  std::optional<TextInfo> haystack;     ///< of passkeys; none: no passkeys
  std::optional<TextInfo> calibration;  ///< of low-rank factors; none: no row needed them
  std::string version;
  std::string compiler;
  std::string instruction_set;
  int threads = 0;
  double reference_perplexity = not_measured;  ///< with plain 16-bit keys and values
  std::vector<std::pair<std::string, std::string>> options;
};

/// Name and version of the compiler that built this library, such as "g++ 12.2.0".
[[nodiscard]] std::string compiler_name();

}  // namespace terse::examples
