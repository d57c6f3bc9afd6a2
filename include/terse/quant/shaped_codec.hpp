/// What codecs share that shape errors by a calibration: the basis, the size of a vector and the
/// gain that leaves its length unbiased.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/multiply_add.hpp"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/policy/tail.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Their base. Members are those of a codec but for the codes.
struct ShapedCodec {
  static constexpr bool uses_calibration = true;
  static constexpr Granularity granularity = Granularity::per_token;
  /// Widest stream: encoding keeps a vector's numbers in arrays of this many.
  static constexpr int max_width = 256;

  using UncalibratedBasis = HadamardBasis<max_width>;

  /// How vectors are turned with a calibration.
  TERSE_HOST_DEVICE static DenseTurn dense_turn(const CodecContext& context, Turn turn) noexcept {
    const float* parts = context.calibration;
    if (parts == nullptr) return {};
    const CalibrationLayout at{context.width};
    DenseTurn result;
    result.matrix = parts + (turn == Turn::to_basis ? at.to_basis() : at.from_basis());
    if (turn == Turn::to_basis) result.subtracted = parts + at.mean();
    if (turn == Turn::from_basis && context.side == Side::key) {
      result.added = parts + at.mean();
      result.multiplies_rows = true;
    }
    return result;
  }
  TERSE_HOST_DEVICE static void to_basis(const CodecContext& context, float* x) noexcept {
    turn(context, Turn::to_basis, x);
  }
  TERSE_HOST_DEVICE static void from_basis(const CodecContext& context, float* x) noexcept {
    turn(context, Turn::from_basis, x);
  }
  /// Queries, so that their products with stored keys are those with keys less their mean.
  TERSE_HOST_DEVICE static void query_to_basis(const CodecContext& context, float* x) noexcept {
    turn(context, Turn::query_to_basis, x);
  }
  /// Product of a query with the keys' mean.
  TERSE_HOST_DEVICE static float query_offset(const CodecContext& context,
                                              const float* x) noexcept {
    if (context.calibration == nullptr) return 0.0f;
    return sum_of_products(x, context.calibration + CalibrationLayout{context.width}.mean(),
                           context.width);
  }

  /// Root mean square of a vector, and 1 over it; 0 and 0 of zeros.
  struct Size {
    float rms, inverse;
  };
  TERSE_HOST_DEVICE static Size size_of(float energy, int width) noexcept {
    const float rms = rounded_root(rounded_quotient(energy, static_cast<float>(width)));
    return {rms, rms == 0.0f ? 0.0f : rounded_quotient(1.0f, rms)};
  }
  /// The gain that is unbiased, of products of a vector, as it counts, with itself and with what is
  /// stored of it, which may be nearly at a right angle to it.
  TERSE_HOST_DEVICE static float unbiased_gain(float length, float along) noexcept {
    if (!(along > 0.0f && is_finite(along) && is_finite(length))) return 1.0f;
    return clamp(rounded_quotient(length, along), 0.5f, 2.0f);
  }

 private:
  TERSE_HOST_DEVICE static void turn(const CodecContext& context, Turn kind, float* x) noexcept {
    const DenseTurn by = dense_turn(context, kind);
    if (by.matrix == nullptr) return UncalibratedBasis::to_basis(context, x);  // its own inverse
    const int width = context.width;
    float turned[max_width] = {};
    if (by.multiplies_rows) {
      for (int c = 0; c < width; ++c) {
        turned[c] = by.added[c] + sum_of_products(x, by.matrix + std::ptrdiff_t{c} * width, width);
      }
    } else {
      for (int c = 0; c < width && by.subtracted != nullptr; ++c) x[c] -= by.subtracted[c];
      add_rows(x, by.matrix, width, width, turned);
    }
    for (int c = 0; c < width; ++c) x[c] = turned[c];
  }
};

/// A policy of such codecs.
struct ShapedSpec {
  int key_bits = 2;
  int value_bits = 2;
  /// The newest tokens exact, and the first four, which most queries look at (docs/quality.md).
  TailSpec tail{.min_tokens = 64, .sink_tokens = 4};
  bool searches_step = false;  ///< ShapedGridSpec's; of grids only
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
