#include "report/progress.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <string_view>
#include <utility>

#include "report/format.hpp"

#if __has_include(<unistd.h>) && __has_include(<sys/ioctl.h>)
#include <unistd.h>

#include <sys/ioctl.h>
#define TERSE_REPORT_TERMINAL 1
#endif

namespace terse::examples {
namespace {

constexpr double redraw_s = 0.1;
// Before that the rate is a guess.
constexpr double least_elapsed_s = 0.5;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool stderr_is_terminal() {
#ifdef TERSE_REPORT_TERMINAL
  const char* kind = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && !(kind != nullptr && std::string_view(kind) == "dumb");
#else
  return false;
#endif
}

int stderr_columns() {
#ifdef TERSE_REPORT_TERMINAL
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
  return 80;
}

// The first `columns` code points.
std::string clipped(const std::string& text, std::size_t columns) {
  std::size_t end = 0;
  std::size_t count = 0;
  for (; end < text.size(); ++end) {
    if ((static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) continue;
    if (count++ == columns) break;
  }
  return text.substr(0, end);
}

}  // namespace

std::string duration_text(double seconds) {
  const long long whole = std::llround(std::max(0.0, seconds));
  const auto two_digits = [](long long value) {
    std::string text = std::to_string(value);
    if (text.size() < 2) text.insert(text.begin(), '0');
    return text;
  };
  if (whole < 60) return std::to_string(whole) + " s";
  if (whole < 3600) return std::to_string(whole / 60) + " min " + two_digits(whole % 60) + " s";
  return std::to_string(whole / 3600) + " h " + two_digits(whole / 60 % 60) + " min";
}

ProgressBar::ProgressBar(double total_weight)
    : ProgressBar(total_weight, std::cerr, stderr_is_terminal(), stderr_columns(), steady_seconds) {
}

ProgressBar::ProgressBar(double total_weight, std::ostream& out, bool is_shown, int columns,
                         std::function<double()> clock)
    : out_(out),
      clock_(std::move(clock)),
      total_weight_(total_weight),
      start_s_(clock_()),
      columns_(columns),
      is_shown_(is_shown) {}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::set_label(std::string label) {
  const std::lock_guard lock(mutex_);
  label_ = std::move(label);
  draw(true);
}

void ProgressBar::advance(double weight) {
  const std::lock_guard lock(mutex_);
  done_weight_ += weight;
  draw(false);
}

void ProgressBar::finish() {
  const std::lock_guard lock(mutex_);
  clear();
  is_shown_ = false;
}

void ProgressBar::clear() {
  if (!is_drawn_) return;
  out_ << "\r\x1b[2K" << std::flush;
  is_drawn_ = false;
}

void ProgressBar::draw(bool is_forced) {
  if (!is_shown_) return;
  const double now_s = clock_();
  if (is_drawn_ && !is_forced && now_s - last_draw_s_ < redraw_s) return;
  last_draw_s_ = now_s;
  const double share = total_weight_ > 0 ? std::clamp(done_weight_ / total_weight_, 0.0, 1.0) : 0.0;
  const double elapsed_s = now_s - start_s_;
  std::string tail(1, ' ');
  tail.append(std::to_string(static_cast<int>(100 * share))).append("%");
  if (share > 0 && elapsed_s >= least_elapsed_s) {
    tail.append(", ").append(duration_text(elapsed_s * (1 - share) / share)).append(" left");
  }
  if (!label_.empty()) tail += "  " + label_;
  // The last column stays free: some terminals wrap when it is written.
  const int room = std::max(0, columns_ - 1);
  const int bar_columns = std::clamp(room / 3 - 2, 0, 30);
  const int filled = static_cast<int>(std::floor(share * bar_columns));
  std::string line;
  if (bar_columns >= 5) {
    line.append(1, '[').append(static_cast<std::size_t>(filled), '#');
    line.append(static_cast<std::size_t>(bar_columns - filled), '.').append(1, ']');
  }
  out_ << "\r\x1b[2K" << clipped(line + tail, static_cast<std::size_t>(room)) << std::flush;
  is_drawn_ = true;
}

}  // namespace terse::examples
