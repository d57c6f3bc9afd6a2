#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terse_test {

/// Values in [-1, 1) that are the same everywhere.
class RandomValues {
 public:
  explicit RandomValues(std::uint64_t seed) : state_(seed * 2 + 1) {}

  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) * 0x1p-23f - 1.0f;
  }

  std::vector<float> vector(std::size_t count, float scale = 1.0f, float offset = 0.0f) {
    std::vector<float> values(count);
    for (float& value : values) {
      value = offset + scale * next();
    }
    return values;
  }

 private:
  std::uint64_t state_;
};

}  // namespace terse_test
