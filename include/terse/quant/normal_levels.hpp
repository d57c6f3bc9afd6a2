/// Levels of the least mean squared error for N(0, 1) (Lloyd, Max).
#pragma once

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// 2^Bits of them, rising with the code.
template <int Bits>
struct NormalLevels {
  static_assert(Bits >= 1 && Bits <= 4);

  TERSE_HOST_DEVICE static constexpr float level(unsigned code) noexcept {
    constexpr unsigned half = 1u << (Bits - 1);
    const float size = positive_level(code < half ? half - 1 - code : code - half);
    return code < half ? -size : size;
  }

  /// The code of the level nearest to `u`, the lower one where two are equally near; 0 for NaN.
  TERSE_HOST_DEVICE static unsigned nearest(float u) noexcept {
    unsigned code = 0;
    for (unsigned i = 1; i < 1u << Bits; ++i) {
      code += u > (level(i - 1) + level(i)) / 2.0f ? 1u : 0u;
    }
    return code;
  }

 private:
  TERSE_HOST_DEVICE static constexpr float positive_level(unsigned i) noexcept {
    if constexpr (Bits == 1) {
      constexpr float levels[] = {0.79788456f};
      return levels[i];
    } else if constexpr (Bits == 2) {
      constexpr float levels[] = {0.45278003f, 1.51041761f};
      return levels[i];
    } else if constexpr (Bits == 3) {
      constexpr float levels[] = {0.24509418f, 0.75600528f, 1.34390928f, 2.15194570f};
      return levels[i];
    } else {
      constexpr float levels[] = {0.12839503f, 0.38804830f, 0.65675912f, 0.94234046f,
                                  1.25623120f, 1.61804639f, 2.06901723f, 2.73258957f};
      return levels[i];
    }
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
