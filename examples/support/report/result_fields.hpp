#pragma once

#include <array>

#include "report/result_row.hpp"

namespace terse::examples {

/// A number of a row under the name that the files use.
struct ResultField {
  const char* name;
  double ResultRow::*value;
};

inline constexpr std::array result_fields = {
    ResultField{"bits_per_element", &ResultRow::bits_per_element},
    ResultField{"bytes_per_token", &ResultRow::bytes_per_token},
    ResultField{"compression_ratio", &ResultRow::compression_ratio},
    ResultField{"share_read", &ResultRow::share_read},
    ResultField{"mean_kl", &ResultRow::mean_kl},
    ResultField{"median_kl", &ResultRow::median_kl},
    ResultField{"p99_kl", &ResultRow::p99_kl},
    ResultField{"p999_kl", &ResultRow::p999_kl},
    ResultField{"perplexity", &ResultRow::perplexity},
    ResultField{"delta_log_perplexity", &ResultRow::delta_log_perplexity},
    ResultField{"delta_log_perplexity_error", &ResultRow::delta_log_perplexity_error},
    ResultField{"top1_agreement", &ResultRow::top1_agreement},
    ResultField{"passkey_digits_right", &ResultRow::passkey_digits_right},
    ResultField{"passkey_nll", &ResultRow::passkey_nll},
    ResultField{"tokens_per_second", &ResultRow::tokens_per_second},
};

}  // namespace terse::examples
