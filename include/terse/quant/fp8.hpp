/// FP8 E4M3 (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433, table 1), no
/// scale: 8 bits per element. Round to nearest even; magnitudes above 448 are stored as 448.
///
/// Keys lie channel by channel `[channel, token]`, values token by token `[token, channel]`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

inline constexpr float e4m3_max = 448.0f;

TERSE_HOST_DEVICE constexpr float from_e4m3(std::uint8_t code) noexcept {
  // The same bits read as fp16 are 2^8 too small, subnormals included.
  const auto half = static_cast<std::uint16_t>((code & 0x80u) << 8 | (code & 0x7fu) << 7);
  return to_float(F16{half}) * 256.0f;
}

TERSE_HOST_DEVICE constexpr std::uint8_t to_e4m3(float x) noexcept {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  if (!__builtin_is_constant_evaluated()) {
    std::uint32_t pair;
    asm("{ .reg .b16 half; cvt.rn.satfinite.e4m3x2.f32 half, %1, %2; cvt.u32.u16 %0, half; }"
        : "=r"(pair)
        : "f"(0.0f), "f"(x));
    return static_cast<std::uint8_t>(pair);
  }
#endif
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // 448 and above
  if (magnitude < 0x3c800000u) {
    // Below 2^-6 the grid is 2^-9 wide: adding 2^14 leaves such steps in the mantissa's end.
    const float aligned = __builtin_bit_cast(float, magnitude) + 16384.0f;
    return static_cast<std::uint8_t>(sign |
                                     (__builtin_bit_cast(std::uint32_t, aligned) - 0x46800000u));
  }
  const std::uint32_t rounded = magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u);
  return static_cast<std::uint8_t>(sign | rounded >> 20);
}

struct Fp8 {
  static constexpr Granularity granularity = Granularity::per_token;
  static constexpr PlainFormat plain_format = PlainFormat::e4m3;

  TERSE_HOST_DEVICE static constexpr Record record(Side, int width) noexcept {
    Record r;
    r.add(static_cast<std::size_t>(width) * block_tokens);
    return r;
  }

  TERSE_HOST_DEVICE static constexpr std::size_t place(const CodecContext& context, int token,
                                                       int channel) noexcept {
    return static_cast<std::size_t>(context.side == Side::key ? channel * block_tokens + token
                                                              : token * context.width + channel);
  }

  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    for (int c = 0; c < context.width; ++c) {
      block[place(context, token, c)] = static_cast<std::byte>(to_e4m3(x[c]));
    }
  }

  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    for (int c = 0; c < context.width; ++c) {
      to[place(context, to_token, c)] = from[place(context, from_token, c)];
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    return from_e4m3(static_cast<std::uint8_t>(block[place(context, token, channel)]));
  }
};
static_assert(Fp8::record(Side::key, 64).bytes == 64 * 64);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
