#pragma once

#include <vector>

namespace terse::examples {

/// Maps values to a coordinate of a drawing, linearly or by logarithm.
class PlotAxis {
 public:
  PlotAxis(double low, double high, double low_place, double high_place, bool is_log);

  [[nodiscard]] double place(double value) const;
  [[nodiscard]] double low() const { return low_; }
  [[nodiscard]] double high() const { return high_; }
  [[nodiscard]] bool is_log() const { return is_log_; }

  /// Round values within the range. On a log scale those that carry a number: decades, then 2 and
  /// 5, then finer steps as the range gets short.
  [[nodiscard]] std::vector<double> ticks() const;

  /// Grid lines between the ticks.
  [[nodiscard]] std::vector<double> minor_ticks() const;

 private:
  [[nodiscard]] std::vector<double> log_ticks(const std::vector<double>& steps) const;

  double low_;
  double high_;
  double low_place_;
  double high_place_;
  bool is_log_;
};

/// The largest of 1, 2, 5 times a power of ten that is not above `value` (positive).
[[nodiscard]] double round_down_125(double value);

}  // namespace terse::examples
