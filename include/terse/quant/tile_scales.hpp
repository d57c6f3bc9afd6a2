/// Scales along both axes of a block `[64 tokens, width]` under which all tokens and all channels
/// vary alike: the dual-axis variance normalisation of KVarN (quant/kvarn.hpp), which alternates as
/// Sinkhorn's iteration does.
///
/// A round multiplies the scales of one axis by the standard deviations of its vectors, then those
/// of the other. Of all rounds, and no round at all, that one is kept which leaves the least
/// imbalance: largest over smallest deviation among tokens, plus the same among channels. The
/// source adds logarithms; here scales are multiplied, within the same bounds, so that no maths
/// library has a say in the result.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// The vectors of a block along one axis: tokens, or channels.
struct TileAxis {
  int vectors;
  int length;  ///< numbers of a vector
  std::size_t vector_stride;
  std::size_t number_stride;

  TERSE_HOST_DEVICE static constexpr TileAxis tokens(int width) noexcept {
    return {block_tokens, width, static_cast<std::size_t>(width), 1};
  }
  TERSE_HOST_DEVICE static constexpr TileAxis channels(int width) noexcept {
    return {width, block_tokens, 1, static_cast<std::size_t>(width)};
  }
  /// Where number `k` of vector `i` lies.
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::size_t at(int i, int k) const noexcept {
    return static_cast<std::size_t>(i) * vector_stride +
           static_cast<std::size_t>(k) * number_stride;
  }
};

/// Widest block of which both axes are scaled.
inline constexpr int max_tile_width = 256;

/// Scales of one axis, each with its inverse.
struct AxisScales {
  float scale[max_tile_width] = {};
  float inverse[max_tile_width] = {};

  TERSE_HOST_DEVICE void set(int i, float s) noexcept {
    scale[i] = s;
    inverse[i] = rounded_reciprocal(s);
  }
};

/// The search for the scales of one block.
struct TileBalance {
  static constexpr float least_deviation = 1e-3f, most_deviation = 1e3f;
  static constexpr float least_scale = 0.74081822f;  ///< exp(-0.3)
  static constexpr float most_scale = 22026.466f;    ///< exp(10)

  AxisScales first{};           ///< of the axis whose scales move first in a round
  AxisScales second{};          ///< of the other
  float imbalance = 0.0f;       ///< under them
  float imbalance_of_x = 0.0f;  ///< of the block as it is

  /// Finds the scales of `x [64, width]`; width is 1 to 256. Where sums of squares overflow, a
  /// round is no better than none: its imbalance is not a number.
  TERSE_HOST_DEVICE void find(const float* x, const TileAxis& first_axis,
                              const TileAxis& second_axis, int rounds) noexcept {
    AxisScales a, b;
    float deviations[max_tile_width] = {};
    for (int i = 0; i < first_axis.vectors; ++i) a.set(i, 1.0f);
    for (int i = 0; i < second_axis.vectors; ++i) b.set(i, 1.0f);
    const float of_x = spread(x, second_axis, b, a, deviations);
    imbalance_of_x = spread(x, first_axis, a, b, deviations) + of_x;
    keep(a, b, imbalance_of_x);
    for (int round = 0; round < rounds; ++round) {
      grow(first_axis, deviations, &a);
      spread(x, second_axis, b, a, deviations);
      grow(second_axis, deviations, &b);
      const float of_b = spread(x, second_axis, b, a, deviations);
      const float now = spread(x, first_axis, a, b, deviations) + of_b;
      if (now <= imbalance) keep(a, b, now);
    }
  }

 private:
  TERSE_HOST_DEVICE void keep(const AxisScales& a, const AxisScales& b, float now) noexcept {
    first = a;
    second = b;
    imbalance = now;
  }

  TERSE_HOST_DEVICE static void grow(const TileAxis& axis, const float* deviations,
                                     AxisScales* scales) noexcept {
    for (int i = 0; i < axis.vectors; ++i) {
      const float by = clamp(deviations[i], least_deviation, most_deviation);
      scales->set(i, clamp(rounded_product(scales->scale[i], by), least_scale, most_scale));
    }
  }

  /// Writes the standard deviations (over one less than the count) of an axis' vectors under both
  /// scales. Returns the largest over the smallest.
  TERSE_HOST_DEVICE static float spread(const float* x, const TileAxis& axis, const AxisScales& own,
                                        const AxisScales& other, float* deviations) noexcept {
    float low = 0.0f, high = 0.0f;
    for (int i = 0; i < axis.vectors; ++i) {
      const auto number = [&](int k) {
        const float v = rounded_product(x[axis.at(i, k)], own.inverse[i]);
        return rounded_product(v, other.inverse[k]);
      };
      float sum = 0.0f, squares = 0.0f;
      for (int k = 0; k < axis.length; ++k) sum += number(k);
      const float mean = rounded_quotient(sum, static_cast<float>(axis.length));
      for (int k = 0; k < axis.length; ++k) {
        const float off = number(k) - mean;
        squares += rounded_product(off, off);
      }
      const int others = axis.length > 1 ? axis.length - 1 : 1;
      deviations[i] = rounded_root(rounded_quotient(squares, static_cast<float>(others)));
      low = i == 0 ? deviations[i] : smaller(low, deviations[i]);
      high = larger(high, deviations[i]);
    }
    return rounded_quotient(high, larger(low, 1e-8f));
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
