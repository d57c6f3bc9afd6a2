/// What the numbered examples share: memory for a cache, random vectors, and the end of the program
/// where something fails.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "terse/core/head_rows.hpp"
#include "terse/core/span.hpp"
#include "terse/core/status.hpp"

namespace example {

/// 128-byte aligned bytes, as caches ask for.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : lines_(bytes / sizeof(Line) + 1) {}
  operator terse::Span<std::byte>() {  // NOLINT(google-explicit-constructor): a view of itself
    return {lines_[0].bytes, lines_.size() * sizeof(Line)};
  }

 private:
  struct alignas(128) Line {
    std::byte bytes[128];
  };
  std::vector<Line> lines_;
};

/// Ends the program with the status's text and exit code 2 unless it is ok.
inline void must(const terse::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s (%lld)\n", status.text, static_cast<long long>(status.detail));
  std::exit(2);
}

/// The value, or the end of the program.
template <class T>
T must(terse::Expected<T> expected) {
  must(expected.status());
  return std::move(*expected);
}

/// `[count, channels]` normally distributed numbers, the same in every run.
inline std::vector<float> random_vectors(int count, int channels) {
  static std::mt19937 bits(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count * channels));
  for (float& v : x) v = normal(bits);
  return x;
}

/// Views of dense fp32 tensors `[row, head, channel]`.
inline terse::HeadRows rows(const std::vector<float>& x, int heads, int channels) {
  return terse::HeadRows::dense(x.data(), terse::Scalar::f32, heads, channels);
}
inline terse::MutableHeadRows rows(std::vector<float>& x, int heads, int channels) {
  return terse::MutableHeadRows::dense(x.data(), terse::Scalar::f32, heads, channels);
}

}  // namespace example
