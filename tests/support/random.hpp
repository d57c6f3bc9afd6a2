/// Reproducible numbers for tests: a small generator whose sequence no library can change.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace terse::tests {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}

  std::uint64_t bits() {
    state_ += 0x9e3779b97f4a7c15ull;
    std::uint64_t z = state_;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  /// In [0, end).
  int below(int end) { return static_cast<int>(bits() % static_cast<std::uint64_t>(end)); }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1.0p-53; }
  float normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return static_cast<float>(radius * std::cos(6.283185307179586 * uniform()));
  }
  std::vector<float> normals(std::size_t count, float scale = 1.0f) {
    std::vector<float> x(count);
    for (float& v : x) v = scale * normal();
    return x;
  }

 private:
  std::uint64_t state_;
};

}  // namespace terse::tests
