/// Which of the newest tokens are kept exact, in which form, and when the older ones are sealed.
#pragma once

#include <cstdint>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/identity.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// What the query at position p reads exactly depends only on p: tokens before
/// `granule * floor(max(0, p + 1 - min_tokens) / granule)` are read decoded, the rest from the
/// tail, in 16 bits unless the policy has a TailCodec.
/// `min_tokens = 0` with codecs that encode token by token means: no tail, everything decoded.
struct TailSpec {
  static constexpr int max_exact_tokens = 1 << 20;
  int min_tokens = 0;                 ///< newest tokens that are always exact
  int granule_tokens = block_tokens;  ///< sealing happens in steps of this many tokens (k * 64)
  int sink_tokens = 0;                ///< first tokens of a sequence kept exact for ever, 0..16

  [[nodiscard]] constexpr Status validate() const noexcept {
    if (min_tokens < 0) {
      return error(StatusCode::invalid_argument, "terse::TailSpec: min_tokens is negative",
                   min_tokens);
    }
    if (granule_tokens <= 0 || granule_tokens % block_tokens != 0) {
      return error(StatusCode::invalid_argument,
                   "terse::TailSpec: granule_tokens must be a positive multiple of 64",
                   granule_tokens);
    }
    if (min_tokens > max_exact_tokens || granule_tokens > max_exact_tokens) {
      return error(StatusCode::unsupported,
                   "terse::TailSpec: min_tokens and granule_tokens are limited to 2^20",
                   min_tokens > granule_tokens ? min_tokens : granule_tokens);
    }
    if (sink_tokens < 0 || sink_tokens > 16) {
      return error(StatusCode::invalid_argument, "terse::TailSpec: sink_tokens must be in 0..16",
                   sink_tokens);
    }
    return {};
  }

  /// First position, counted from the block grid's origin, that the query at `p` reads exactly.
  template <class Int>
  [[nodiscard]] TERSE_HOST_DEVICE constexpr Int sealed_before(Int p) const noexcept {
    const Int old = p + 1 - min_tokens;
    return old <= 0 ? 0 : old / granule_tokens * granule_tokens;
  }

  /// Most tokens that lie in the tail when steps add up to `max_step_tokens`.
  [[nodiscard]] TERSE_HOST_DEVICE constexpr std::int64_t capacity_tokens(
      int max_step_tokens) const noexcept {
    return std::int64_t{min_tokens} + granule_tokens - 1 + max_step_tokens;
  }
};

/// Policy part: the default tail of a policy. PolicyConfig::tail overrides it.
template <TailSpec S>
struct Tail {
  static_assert(S.validate().ok(),
                "terse::Tail: min_tokens must be in 0..2^20, granule_tokens a positive multiple of "
                "64, sink_tokens in 0..16.");
  static constexpr TailSpec tail = S;
};

/// Policy part: the form of the tail, a codec that encodes token by token. Without this part it is
/// Identity, 16 bits; TailCodec<Int8> keeps twice the tokens in the same bytes. Then "exact" means
/// as this codec has them, in the basis of the policy's codecs: queries read the newest tokens so,
/// and blocks are sealed from that. Magnitudes above `tail_max` are stored as that. Sinks stay
/// 16-bit. Ring blocks are used again, so `encode_token` must write all that `decode` reads of a
/// token. Without effect in policies without a tail.
template <class C>
struct TailCodec {
  using tail_codec = C;
};

/// Largest magnitude in a tail that is not 16-bit. Of Int8 the factor is then at most 515.5, and
/// numbers are decoded to no more than fp16 holds.
inline constexpr float tail_max = 65468.0f;

/// Whether a policy's tails are plain 16-bit numbers.
template <class Policy>
inline constexpr bool has_f16_tail = std::is_same_v<typename Policy::tail_codec, Identity>;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
