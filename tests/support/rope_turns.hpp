/// What the tests of append with a table of turns share.
#pragma once

#include <cstddef>
#include <vector>

#include "terse/cache/config.hpp"
#include "terse/core/rope.hpp"

namespace terse::tests {

inline constexpr int rope_positions = 300;

inline CacheConfig rope_config(const RopeSpec& rope) {
  return {.num_layers = 1,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 3,
          .max_tokens = 400,
          .max_step_tokens = 128,
          .rope = rope};
}

/// The table that an engine makes once, `[position, pair, 2]`.
inline std::vector<float> rope_turns(const RopeSpec& rope, int positions) {
  const auto each = static_cast<std::size_t>(rope.rotary_dim);
  std::vector<float> turns(static_cast<std::size_t>(positions) * each);
  for (int p = 0; p < positions; ++p) {
    fill_turn(rope, p, turns.data() + static_cast<std::size_t>(p) * each);
  }
  return turns;
}

}  // namespace terse::tests
