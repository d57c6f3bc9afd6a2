/// What conformance checks give back, and what they share.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace testing {

/// How many checks ran, and what the first failure was. The checks of one call stop at it.
struct Report {
  int checks = 0;
  std::string failure;  ///< empty: none

  [[nodiscard]] bool ok() const noexcept { return failure.empty(); }
};

namespace detail {

/// A reproducible sequence (an xorshift generator).
class Sequence {
 public:
  explicit Sequence(std::uint64_t seed) noexcept : state_(seed * 0x9e3779b97f4a7c15ull | 1) {}
  std::uint64_t bits() noexcept {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ >> 11;
  }
  int below(int end) noexcept { return static_cast<int>(bits() % static_cast<unsigned>(end)); }
  /// Bell-shaped, variance 1.
  float normal() noexcept {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(bits()) * 0x1.0p-53;
    return static_cast<float>(sum - 6.0);
  }

 private:
  std::uint64_t state_;
};

/// Counts checks and keeps the first failure.
class Checker {
 public:
  explicit Checker(std::string subject) : subject_(std::move(subject)) {}
  /// False once anything has failed.
  bool expect(bool holds, const std::string& text) {
    if (!report_.ok()) return false;
    ++report_.checks;
    if (!holds) report_.failure = subject_ + ": " + text;
    return holds;
  }
  [[nodiscard]] bool ok() const noexcept { return report_.ok(); }
  [[nodiscard]] Report report() const { return report_; }

 private:
  std::string subject_;
  Report report_;
};

}  // namespace detail
}  // namespace testing
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
