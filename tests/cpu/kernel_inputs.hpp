/// Inputs and error measures shared by the tests of the host kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "terse/cpu/dispatch.hpp"

namespace terse_test {

/// Every table that this machine can run.
inline std::vector<const terse::cpu::KernelTable*> available_tables() {
  std::vector<const terse::cpu::KernelTable*> tables;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (const terse::cpu::KernelTable* table = terse::cpu::kernels_named(name)) {
      tables.push_back(table);
    }
  }
  return tables;
}

/// A deterministic stream of numbers.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  double uniform() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }
  float normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return static_cast<float>(radius * std::cos(6.283185307179586 * uniform()));
  }

 private:
  std::uint64_t state_;
};

enum class Shape { normal, outliers, zeros, tiny, one_sign };
inline constexpr Shape all_shapes[] = {Shape::normal, Shape::outliers, Shape::zeros, Shape::tiny,
                                       Shape::one_sign};

/// `[row, column]` numbers; outliers sit in a few columns, as in real keys.
inline std::vector<float> make_matrix(Shape shape, int rows, int columns, std::uint64_t seed) {
  Numbers numbers(seed);
  std::vector<float> x(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  std::size_t i = 0;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c, ++i) {
      const float n = numbers.normal();
      switch (shape) {
        case Shape::normal:
          x[i] = n;
          break;
        case Shape::outliers:
          x[i] = c % 13 == 5 ? 40.0f * n + 90.0f : n;
          break;
        case Shape::zeros:
          x[i] = 0.0f;
          break;
        case Shape::tiny:
          x[i] = 1e-4f * n;
          break;
        case Shape::one_sign:
          x[i] = std::fabs(n) + 3.0f;
          break;
      }
    }
  }
  return x;
}

/// Difference of two vectors over `scale`, the size of the terms that were added: what an fp32 sum
/// can be held to where terms cancel.
inline double relative_error(const std::vector<double>& wanted, const float* got,
                             const std::vector<double>& scale) {
  double error = 0.0, size = 0.0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double d = static_cast<double>(got[i]) - wanted[i];
    error += d * d;
    size += scale[i] * scale[i];
  }
  return size == 0.0 ? std::sqrt(error) : std::sqrt(error / size);
}

}  // namespace terse_test
