/// 16-bit storage: the control row of every table, the form of sinks and, unless a policy has a
/// TailCodec, of tails. 16 bits.
///
/// Keys lie channel by channel `[channel, token]`, values token by token `[token, channel]`, fp16,
/// round to nearest even. Finite values beyond 65504 are stored as 65504.
#pragma once

#include <cstddef>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct Identity {
  static constexpr Granularity granularity = Granularity::per_token;
  static constexpr PlainFormat plain_format = PlainFormat::f16;

  TERSE_HOST_DEVICE static constexpr Record record(Side, int width) noexcept {
    Record r;
    r.add(static_cast<std::size_t>(width) * block_tokens * sizeof(F16));
    return r;
  }

  /// Index of (token, channel) in a block of `tokens` tokens.
  TERSE_HOST_DEVICE static constexpr std::size_t place(const CodecContext& context, int tokens,
                                                       int token, int channel) noexcept {
    return context.side == Side::key
               ? static_cast<std::size_t>(channel) * static_cast<std::size_t>(tokens) +
                     static_cast<std::size_t>(token)
               : static_cast<std::size_t>(token) * static_cast<std::size_t>(context.width) +
                     static_cast<std::size_t>(channel);
  }

  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    store(context, x, block_tokens, token, block);
  }

  /// Stores `x [width]` as token `token` of a block that has room for `tokens`.
  TERSE_HOST_DEVICE static void store(const CodecContext& context, const float* x, int tokens,
                                      int token, std::byte* block) noexcept {
    for (int c = 0; c < context.width; ++c) {
      const F16 half = to_f16_saturating(x[c]);
      std::memcpy(block + place(context, tokens, token, c) * sizeof(F16), &half, sizeof half);
    }
  }

  TERSE_HOST_DEVICE static float load(const CodecContext& context, const std::byte* block,
                                      int tokens, int token, int channel) noexcept {
    F16 half;
    std::memcpy(&half, block + place(context, tokens, token, channel) * sizeof(F16), sizeof half);
    return to_float(half);
  }

  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    for (int c = 0; c < context.width; ++c) {
      std::memcpy(to + place(context, block_tokens, to_token, c) * sizeof(F16),
                  from + place(context, block_tokens, from_token, c) * sizeof(F16), sizeof(F16));
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    return load(context, block, block_tokens, token, channel);
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
