#pragma once

#include <string>
#include <vector>

#include "report/result_row.hpp"

namespace terse::examples {

/// A standalone SVG: mean divergence (log scale) against bytes per token, one labelled point a
/// policy, and below it, on the same bytes, the share of passkey digits right where measured.
/// Divergences too small for the scale stand on its floor with their value written beside them.
/// Rows without a positive `bytes_per_token` or without `mean_kl` are left out of the first panel.
[[nodiscard]] std::string quality_plot_svg(const RunInfo& run, const std::vector<ResultRow>& rows);

}  // namespace terse::examples
