/// The table of turns that an engine makes once.
#pragma once

#include <cstddef>
#include <vector>

#include "terse/core/rope.hpp"

namespace terse::tests {

/// `[position, pair, 2]`
inline std::vector<float> rope_turns(const RopeSpec& rope, int positions) {
  const auto each = static_cast<std::size_t>(rope.rotary_dim);
  std::vector<float> turns(static_cast<std::size_t>(positions) * each);
  for (int p = 0; p < positions; ++p) {
    fill_turn(rope, p, turns.data() + static_cast<std::size_t>(p) * each);
  }
  return turns;
}

}  // namespace terse::tests
