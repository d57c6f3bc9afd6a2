/// What evictors choose victims by, the same on every processor: ties are broken by age.
///
/// kill_if and keep_highest are those of the host's list. Lists of the device have their own
/// (cuda/evict/unit_tokens.cuh), which all threads of a thread block call together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/policy/evictor.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Maps a score to an integer whose order is that of the scores (NaN sorts lowest).
[[nodiscard]] TERSE_HOST_DEVICE inline std::uint32_t ordered_bits(float score) noexcept {
  if (!(score == score)) return 0;
  const auto bits = __builtin_bit_cast(std::uint32_t, score + 0.0f);  // -0 counts as 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// Tokens of any list whose position is below `position`: they are its first ones.
TERSE_OF_EITHER_PROCESSOR
template <class Tokens>
[[nodiscard]] TERSE_HOST_DEVICE int count_before(const Tokens& list,
                                                 std::int64_t position) noexcept {
  int low = 0, high = list.size();
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (list.position(middle) < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Kills those of the tokens [begin, end) of `list` for which `victim(i)` holds.
template <class TokenState, class Victim>
void kill_if(TokenList<TokenState>& list, int begin, int end, Victim&& victim) {
  for (int i = begin; i < end; ++i) {
    if (victim(i)) list.kill(i);
  }
}

/// Among the tokens [begin, end) of `list`, keeps the `keep` with the highest `score(i)` and kills
/// the others. Of equal scores the newer token survives, so the choice is unique.
template <class TokenState, class Score>
void keep_highest(TokenList<TokenState>& list, int begin, int end, int keep, Score&& score) {
  const int victims = end - begin - std::max(keep, 0);
  if (victims <= 0) return;
  std::uint64_t* keys = list.scratch().data();
  for (int i = begin; i < end; ++i) {
    keys[i - begin] =
        static_cast<std::uint64_t>(ordered_bits(score(i))) << 32 | static_cast<std::uint32_t>(i);
  }
  if (victims == 1) {
    list.kill(static_cast<int>(*std::min_element(keys, keys + (end - begin)) & 0xffffffffu));
    return;
  }
  if (victims < end - begin) std::nth_element(keys, keys + victims, keys + (end - begin));
  for (int v = 0; v < victims; ++v) list.kill(static_cast<int>(keys[v] & 0xffffffffu));
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
