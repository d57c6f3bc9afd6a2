/// How much of codes that are stored as planes attention reads, and the count of what it read.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/status.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class PlaneRule : std::uint8_t {
  everything,  ///< all planes
  /// As few as the two tolerances of PlaneReading allow.
  tolerance,
  /// AlignedKV (arXiv 2409.16546): by exponents alone. On the host.
  exponents,
};

/// Which planes of its codes a cache is read to; policies without planes (quant/planes.hpp) are
/// read whole. Tokens in the tail and exact sinks always are. With a projector only
/// PlaneRule::everything is served.
struct PlaneReading {
  PlaneRule rule = PlaneRule::everything;
  /// PlaneRule::tolerance: no logit of a decoded token, after the softmax scale and before the soft
  /// cap, differs from that of whole codes by more, beside rounding.
  float logit_tolerance = 0.0f;
  /// PlaneRule::tolerance: no number of an output differs from that of whole values, under the same
  /// probabilities, by more than this times the largest error of a value of which nothing is read
  /// (run_unit * plane_error(0), of tokens that the rows read): of fp16 and fixed-point numbers one
  /// to about two times the largest magnitude, of affine codes half of their range.
  float value_tolerance = 0.0f;
  /// PlaneRule::exponents: powers of two by which a number's last bits must lie below what the rule
  /// asks. 0 is the paper's, for sums in fp16.
  int margin = 0;

  [[nodiscard]] Status validate() const noexcept {
    const auto is_bad = [](float x) { return !(x >= 0.0f) || !is_finite(x); };
    if (is_bad(logit_tolerance) || is_bad(value_tolerance)) {
      return error(StatusCode::invalid_argument,
                   "terse::PlaneReading: tolerances must be finite and not negative");
    }
    if (margin < 0 || margin > 16) {
      return error(StatusCode::invalid_argument, "terse::PlaneReading: margin must be in 0..16",
                   margin);
    }
    return {};
  }
};

/// Bytes of encoded blocks that attention asked memory for, each block once a visit of a unit's
/// rows, however many they are; and what all planes and parameters of the same blocks take. Under
/// PlaneRule::exponents what AlignedKV's caches would read: keys once, and largest exponents of
/// values that are kept beside them.
struct BytesRead {
  std::uint64_t keys = 0;
  std::uint64_t values = 0;
  std::uint64_t keys_stored = 0;
  std::uint64_t values_stored = 0;

  TERSE_HOST_DEVICE BytesRead& operator+=(const BytesRead& other) noexcept {
    keys += other.keys;
    values += other.values;
    keys_stored += other.keys_stored;
    values_stored += other.values_stored;
    return *this;
  }
  /// Of the bytes that are stored, those that were read; NaN of none.
  [[nodiscard]] double share() const noexcept {
    return static_cast<double>(keys + values) / static_cast<double>(keys_stored + values_stored);
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
