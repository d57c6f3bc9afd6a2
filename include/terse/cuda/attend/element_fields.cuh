/// NVFP4's elements as halves of tensor-core operands: their bits moved to those of fp16 numbers,
/// times the scale of their group, which lie beside them in a block.
///
/// E2M1's exponent and mantissa, as the lowest bits of an fp16 exponent and the highest of a
/// mantissa, are element * 2^-14, subnormal ones included. Times an E4M3 scale * 2^7 they are
/// multiples of 2^-17 below 22 with no more than six bits: exact.
#pragma once

#include <concepts>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/code_fields.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/level_codes.hpp"
#include "terse/quant/nvfp4.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Whether a format's levels are E2M1 and its scales E4M3 times one number.
template <class Format>
[[nodiscard]] consteval bool has_scaled_elements() noexcept {
  for (unsigned code = 0; code < 16; ++code) {
    if (Format::level(code) != from_e2m1(code)) return false;
  }
  constexpr auto one = to_e4m3(1.0f);
  for (unsigned scale = 0; scale < 0x100; ++scale) {
    if ((scale & 0x7fu) == 0x7fu) continue;  // NaN
    const auto stored = static_cast<std::uint8_t>(scale);
    if (Format::scale_value(stored) != from_e4m3(stored) * Format::scale_value(one)) return false;
  }
  return true;
}

/// Elements with an E4M3 scale for 16 channels that tensor cores can take.
template <class C>
concept ScaledElements =
    LevelCodec<C> && !AffineCodec<C> && C::bits == 4 && C::level_format::group == 16 &&
    std::same_as<typename C::Scale, std::uint8_t> &&
    has_scaled_elements<typename C::level_format>();

/// Scales of four neighbouring tokens in halves, as the elements' factors.
[[nodiscard]] __device__ __forceinline__ uint2 element_factors(std::uint32_t scales) {
  constexpr std::uint32_t raised = 0x58005800;  // 2^7
  return {multiply_half2(e4m3_to_half2(scales), raised),
          multiply_half2(e4m3_to_half2(scales >> 16), raised)};
}

/// A lane's word of elements: as LaneCodes, with numbers for codes.
template <class Codec>
struct LaneElements {
  static constexpr int words = 1;
  /// What undoes both powers of two.
  static constexpr float unit = 128.0f * Codec::level_format::scale_value(to_e4m3(1.0f));
  static constexpr int field_step = 1;

  __device__ __forceinline__ void set(int, std::uint32_t word) { word_ = word; }
  /// Of neighbours 0 and 1, and of 2 and 3, which element_factors gave.
  __device__ __forceinline__ void set_factors(std::uint32_t first, std::uint32_t second) {
    factors_[0] = first;
    factors_[1] = second;
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    const std::uint32_t top = word_ << ((half == 0 ? 8 : 0) + (field == 0 ? 4 : 0));
    return multiply_half2((top & 0x80008000u) | (top >> 3 & 0x0e000e00u), factors_[half]);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }

 private:
  std::uint32_t word_, factors_[2];
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
