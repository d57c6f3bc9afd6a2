#pragma once

#include <functional>
#include <iosfwd>
#include <mutex>
#include <string>

namespace terse::examples {

/// A bar with the time left. Steps may have different weights (any unit of work); the time left
/// assumes equal time for equal weight. All members may be called from several threads.
class ProgressBar {
 public:
  /// On standard error; silent when that is not a terminal (or TERM is "dumb").
  explicit ProgressBar(double total_weight);

  /// On `out` with a clock of seconds and `columns` of width; silent unless `is_shown`.
  ProgressBar(double total_weight, std::ostream& out, bool is_shown, int columns,
              std::function<double()> clock);

  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// Names what runs now.
  void set_label(std::string label);

  /// `weight` more is done.
  void advance(double weight);

  /// Clears the line; later calls do nothing. The destructor does it too.
  void finish();

 private:
  void draw(bool is_forced);
  void clear();

  std::mutex mutex_;
  std::ostream& out_;
  std::function<double()> clock_;
  std::string label_;
  double total_weight_;
  double done_weight_ = 0;
  double start_s_ = 0;
  double last_draw_s_ = 0;
  int columns_;
  bool is_shown_;
  bool is_drawn_ = false;
};

/// "8 s", "2 min 05 s", "1 h 02 min".
[[nodiscard]] std::string duration_text(double seconds);

}  // namespace terse::examples
