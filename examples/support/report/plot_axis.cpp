#include "report/plot_axis.hpp"

#include <cmath>

namespace terse::examples {
namespace {

// Rounding in the powers of ten must not lose a tick at the end of the range.
constexpr double slack = 1e-9;

}  // namespace

PlotAxis::PlotAxis(double low, double high, double low_place, double high_place, bool is_log)
    : low_(low), high_(high), low_place_(low_place), high_place_(high_place), is_log_(is_log) {}

double PlotAxis::place(double value) const {
  const double share =
      is_log_ ? std::log(value / low_) / std::log(high_ / low_) : (value - low_) / (high_ - low_);
  return low_place_ + share * (high_place_ - low_place_);
}

std::vector<double> PlotAxis::log_ticks(const std::vector<double>& steps) const {
  std::vector<double> values;
  const int first = static_cast<int>(std::floor(std::log10(low_)));
  const int last = static_cast<int>(std::floor(std::log10(high_)));
  for (int decade = first; decade <= last; ++decade) {
    for (const double step : steps) {
      const double value = step * std::pow(10.0, decade);
      if (value >= low_ * (1 - slack) && value <= high_ * (1 + slack)) values.push_back(value);
    }
  }
  return values;
}

std::vector<double> PlotAxis::ticks() const {
  const double decades = is_log_ ? std::log10(high_ / low_) : 0;
  // A short stretch of a log scale is nearly linear.
  if (decades > 0.4) {
    if (decades > 3) return log_ticks({1});
    if (decades > 1.7) return log_ticks({1, 2, 5});
    if (decades > 0.8) return log_ticks({1, 1.5, 2, 3, 5, 7});
    return log_ticks({1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9});
  }
  constexpr double most_ticks = 8;
  double step = round_down_125((high_ - low_) / most_ticks);
  while ((high_ - low_) / step > most_ticks) step = round_down_125(step * 2.5);
  std::vector<double> values;
  const double start = std::ceil(low_ / step - slack);
  for (double count = start; count * step <= high_ + slack * step; ++count) {
    values.push_back(count * step);
  }
  return values;
}

std::vector<double> PlotAxis::minor_ticks() const {
  return is_log_ ? log_ticks({1, 2, 3, 4, 5, 6, 7, 8, 9}) : std::vector<double>{};
}

double round_down_125(double value) {
  const double decade = std::pow(10.0, std::floor(std::log10(value) + slack));
  const double mantissa = value / decade * (1 + slack);
  return decade * (mantissa >= 5 ? 5 : mantissa >= 2 ? 2 : 1);
}

}  // namespace terse::examples
