/// Which of the newest tokens are kept exact, and when the older ones are sealed.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// What the query at position p reads exactly depends only on p: tokens before
/// `granule * floor(max(0, p + 1 - min_tokens) / granule)` are read decoded, the rest as 16-bit.
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

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
