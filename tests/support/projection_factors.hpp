/// Random factors of a projector.
#pragma once

#include <cstddef>
#include <vector>

#include "terse/policy/projector.hpp"

#include "support/random.hpp"

namespace terse::tests {

struct Factors {
  std::vector<float> key_up, value_up;
  ProjectionFactors view;
  /// Entries that leave the length of a vector about as it is.
  Factors(int kv_heads, int head_dim, int key_rank, int value_rank) {
    Random random(3);
    const auto rows = static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(head_dim);
    key_up = random.normals(rows * static_cast<std::size_t>(key_rank), 0.15f);
    value_up = random.normals(rows * static_cast<std::size_t>(value_rank), 0.15f);
    view = {key_rank, value_rank, key_up.data(), value_up.data()};
  }
  Factors(const Factors&) = delete;
  Factors& operator=(const Factors&) = delete;
};

}  // namespace terse::tests
