/// NVFP4: 16 channels share an E4M3 scale, elements are E2M1. 4.5 bits.
///
/// The block format of NVIDIA's Blackwell (PTX ISA, block scaling of `mxf4nvf4`; elements as in the
/// OCP Microscaling Formats specification 1.0):
///
///   scale = E4M3(max|x| / 6 / g)      element = E2M1(x / (scale g))      decoded  element scale g
///
/// both rounded half to even. g, an fp32 number of a whole tensor, is a constant here, a power of
/// two, as in checkpoints that are not calibrated: tokens are encoded as they come, when no largest
/// magnitude of the tensor is known. With g = 1 groups of which the largest magnitude lies within
/// 0.094 to 2688 have scales of full precision.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/hadamard.hpp"
#include "terse/quant/level_codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

inline constexpr float e2m1_max = 6.0f;

/// E2M1: sign, two bits of exponent (bias 1), one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
TERSE_HOST_DEVICE constexpr float from_e2m1(unsigned code) noexcept {
  const unsigned exponent = code >> 1 & 3u, mantissa = code & 1u;
  const float magnitude = exponent == 0
                              ? 0.5f * static_cast<float>(mantissa)
                              : 0.5f * static_cast<float>((2u + mantissa) << (exponent - 1));
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

/// Round to nearest even; magnitudes above 6 become 6.
TERSE_HOST_DEVICE constexpr unsigned to_e2m1(float x) noexcept {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const float magnitude = __builtin_bit_cast(float, bits & 0x7fffffffu);
  // Halves between neighbours, which go to the even code.
  const unsigned code = (magnitude > 0.25f ? 1u : 0u) + (magnitude >= 0.75f ? 1u : 0u) +
                        (magnitude > 1.25f ? 1u : 0u) + (magnitude >= 1.75f ? 1u : 0u) +
                        (magnitude > 2.5f ? 1u : 0u) + (magnitude >= 3.5f ? 1u : 0u) +
                        (magnitude > 5.0f ? 1u : 0u);
  return (bits >> 28 & 8u) | code;
}

struct NvFp4Spec {
  int tensor_scale_log2 = 0;  ///< of g; -60 to 60
};

template <NvFp4Spec S>
struct NvFp4Levels {
  static_assert(S.tensor_scale_log2 >= -60 && S.tensor_scale_log2 <= 60,
                "terse::NvFp4: tensor_scale_log2 must lie within -60 to 60.");

  static constexpr int bits = 4;
  static constexpr int group = 16;
  using Scale = std::uint8_t;

  static constexpr float tensor_scale =
      __builtin_bit_cast(float, static_cast<std::uint32_t>(127 + S.tensor_scale_log2) << 23);

  TERSE_HOST_DEVICE static constexpr float level(unsigned code) noexcept { return from_e2m1(code); }
  TERSE_HOST_DEVICE static constexpr float scale_value(Scale scale) noexcept {
    return from_e4m3(scale) * tensor_scale;
  }

  struct Group {
    Scale scale = 0;
    float divisor = 0.0f;  ///< scale_value(scale)
  };

  TERSE_HOST_DEVICE static Group find_group(const float* x, int count) noexcept {
    float peak = 0.0f;
    for (int i = 0; i < count; ++i) peak = larger(peak, absolute(x[i]));
    Group g;
    g.scale = to_e4m3(rounded_quotient(peak, e2m1_max * tensor_scale));
    g.divisor = scale_value(g.scale);
    return g;
  }
  TERSE_HOST_DEVICE static unsigned code_of(float v, const Group& g) noexcept {
    return g.divisor == 0.0f ? 0u : to_e2m1(rounded_quotient(v, g.divisor));
  }
};

template <NvFp4Spec S>
struct NvFp4Scaled : LevelCodes<NvFp4Levels<S>> {};

using NvFp4 = NvFp4Scaled<NvFp4Spec{}>;
/// In a rotated basis, which leaves no outliers in a group.
using NvFp4Rotated = InBasis<NvFp4, HadamardBasis<256>>;
static_assert(NvFp4::record(Side::key, 64).bytes * 8 == 64 * 64 * 9 / 2);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
