/// TurboQuant_mse: a vector's length, and its direction in a rotated basis by the levels that suit
/// the coordinates of a random direction. bits + 16 / width bits.
///
/// TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate (arXiv 2504.19874),
/// section 3.1, algorithm 1. With y = R x in the basis R and w channels:
///
///   code_c = the level nearest to y_c sqrt(w) / |y|      decoded  level(code_c) f
///   f = |y| / |levels of the codes|                      (corrects_norm)
///   f = |y| / sqrt(w)                                    (as in the paper)
///
/// Departs from the paper: R is a Hadamard matrix with fixed signs in place of a random matrix, the
/// levels are those of the limit N(0, 1) at every width (at width 64 the exact density's would
/// leave 0.02 to 0.4 % less error), and the length of what is decoded is by
/// default that of the vector: vLLM's norm correction, here computed once, at writing. Bits are the
/// same for all channels.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/quant/hadamard.hpp"
#include "terse/quant/level_codes.hpp"
#include "terse/quant/normal_levels.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct TurboQuantSpec {
  int bits = 3;               ///< of a code: 2, 3 or 4
  bool corrects_norm = true;  ///< what is decoded has the vector's length
};

/// NormalLevels, and a factor per token.
template <TurboQuantSpec S>
struct TurboQuantLevels {
  static_assert(S.bits == 2 || S.bits == 3 || S.bits == 4,
                "terse::TurboQuant: bits must be 2, 3 or 4.");

  static constexpr int bits = S.bits;
  static constexpr int group = 0;
  using Scale = F16;

  TERSE_HOST_DEVICE static constexpr float level(unsigned code) noexcept {
    return NormalLevels<bits>::level(code);
  }
  TERSE_HOST_DEVICE static constexpr float scale_value(F16 scale) noexcept {
    return to_float(scale);
  }

  struct Group {
    F16 scale{};
    float inverse = 0.0f;  ///< of the root mean square; 0 where `scale` is 0
  };

  TERSE_OF_EITHER_PROCESSOR
  template <class Squares = SumOfSquares>
  TERSE_HOST_DEVICE static Group find_group(const float* x, int count,
                                            Squares sum_of_squares = {}) noexcept {
    const float squares = sum_of_squares(count, [&](int i) { return x[i]; });
    if (squares == 0.0f) return {};
    const float size = rounded_root(rounded_quotient(squares, static_cast<float>(count)));
    Group g{to_f16_saturating(size), rounded_quotient(1.0f, size)};
    if constexpr (S.corrects_norm) {
      const float decoded = sum_of_squares(count, [&](int i) { return level(code_of(x[i], g)); });
      g.scale = to_f16_saturating(rounded_root(rounded_quotient(squares, decoded)));
    }
    return g.scale.bits == 0 ? Group{} : g;
  }

  TERSE_HOST_DEVICE static unsigned code_of(float v, const Group& g) noexcept {
    return NormalLevels<bits>::nearest(rounded_product(v, g.inverse));
  }
};

template <TurboQuantSpec S>
struct TurboQuant : InBasis<LevelCodes<TurboQuantLevels<S>>, SignedHadamardBasis<256>> {};

using TurboQuant2 = TurboQuant<TurboQuantSpec{.bits = 2}>;
using TurboQuant3 = TurboQuant<TurboQuantSpec{.bits = 3}>;
using TurboQuant4 = TurboQuant<TurboQuantSpec{.bits = 4}>;
static_assert(TurboQuant3::record(Side::key, 64).bytes * 8 == 64 * (64 * 3 + 16));

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
