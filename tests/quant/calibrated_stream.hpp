/// A stream with a calibration of its own, for tests of codecs that shape errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "terse/cache/calibration.hpp"
#include "terse/policy/calibration.hpp"

#include "tests/support/random_calibration.hpp"

namespace terse::tests {

/// One stream with a calibration of its own.
struct CalibratedStream {
  int width;
  Side side;
  Calibration calibration;

  explicit CalibratedStream(Side of_side, int of_width, std::uint64_t seed = 1)
      : width(of_width), side(of_side), calibration(random_calibration({1, 1, of_width}, seed)) {}

  [[nodiscard]] const float* data() const {
    const SlotCalibration& slot = calibration.view().slots[0];
    return side == Side::key ? slot.keys : slot.values;
  }
  [[nodiscard]] CodecContext context() const { return {side, width, data()}; }

  /// The cost of an error in the basis, and its product with another: what the feedback says.
  [[nodiscard]] double product(const std::vector<double>& a, const std::vector<double>& b) const {
    const CalibrationLayout at{width};
    const auto counted = [&](const std::vector<double>& e, int j) {
      double sum = e[static_cast<std::size_t>(j)];
      for (int i = j + 1; i < width; ++i) {
        sum += double{data()[at.feedback() + std::ptrdiff_t{i} * width + j]} *
               e[static_cast<std::size_t>(i)];
      }
      return sum;
    };
    double sum = 0;
    for (int j = 0; j < width; ++j) {
      sum += double{data()[at.weight() + j]} * counted(a, j) * counted(b, j);
    }
    return sum;
  }
};

/// What is decoded of one encoded token.
template <class C>
std::vector<double> stored(const CodecContext& context, const std::vector<float>& x) {
  std::vector<std::byte> block(C::record(context.side, context.width).bytes);
  C::encode_token(context, x.data(), 5, block.data());
  std::vector<double> y;
  for (int c = 0; c < context.width; ++c) y.push_back(C::decode(context, block.data(), 5, c));
  return y;
}

}  // namespace terse::tests
