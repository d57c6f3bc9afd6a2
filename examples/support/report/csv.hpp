#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "report/result_row.hpp"

namespace terse::examples {

/// One record of RFC 4180, CRLF included: fields with comma, quote, CR or LF are quoted.
[[nodiscard]] std::string csv_record(const std::vector<std::string>& fields);

/// A header record and one record a row; numbers with all their digits, NaN and
/// infinities as empty fields.
[[nodiscard]] std::string results_csv(const std::vector<ResultRow>& rows);

}  // namespace terse::examples
