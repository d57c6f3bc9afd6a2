/// One block of one side through a codec, and numbers that are the same on every machine.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terse/policy/codec.hpp"

#include "tests/support/random.hpp"

namespace terse::tests {

template <Codec C>
class CodecBlock {
 public:
  CodecBlock(Side side, int width)
      : context_{side, width}, bytes_(C::record(side, width).bytes, std::byte{0}) {}

  /// Encodes `x [64, width]`, which is not yet in the codec's basis.
  void encode(std::vector<float> x) {
    for (int t = 0; t < block_tokens; ++t) to_basis<C>(context_, x.data() + index(t, 0));
    encode_in_basis(x);
  }
  void encode_in_basis(const std::vector<float>& x) {
    encode_block<C>(context_, x.data(), bytes_.data());
  }

  /// `[64, width]` in the codec's basis.
  [[nodiscard]] std::vector<float> decode_in_basis() const {
    std::vector<float> x(index(block_tokens, 0));
    for (int t = 0; t < block_tokens; ++t) {
      for (int c = 0; c < context_.width; ++c) {
        x[index(t, c)] = C::decode(context_, bytes_.data(), t, c);
      }
    }
    return x;
  }
  [[nodiscard]] std::vector<float> decode() const {
    std::vector<float> x = decode_in_basis();
    for (int t = 0; t < block_tokens; ++t) from_basis<C>(context_, x.data() + index(t, 0));
    return x;
  }

  [[nodiscard]] std::size_t index(int token, int channel) const {
    return static_cast<std::size_t>(token * context_.width + channel);
  }
  [[nodiscard]] const CodecContext& context() const { return context_; }
  [[nodiscard]] std::vector<std::byte>& bytes() { return bytes_; }
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }
  [[nodiscard]] int byte(std::size_t i) const { return std::to_integer<int>(bytes_[i]); }

 private:
  CodecContext context_;
  std::vector<std::byte> bytes_;
};

template <Codec C>
std::vector<float> round_trip(Side side, int width, const std::vector<float>& x) {
  CodecBlock<C> block(side, width);
  block.encode(x);
  return block.decode();
}

/// `[64, width]` bell-shaped numbers made of integer arithmetic only: exact on every machine.
inline std::vector<float> golden_values(int width) {
  Random random(20);
  std::vector<float> x(static_cast<std::size_t>(block_tokens * width));
  for (float& v : x) {
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += random.below(4096);
    v = static_cast<float>(sum - 2 * 4096) / 2048.0f;
  }
  return x;
}

/// FNV-1a, 64 bits.
inline std::uint64_t fnv1a(const std::vector<std::byte>& bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const std::byte b : bytes) hash = (hash ^ std::to_integer<std::uint64_t>(b)) * 0x100000001b3;
  return hash;
}

/// FNV-1a of the record of golden_values(width).
template <Codec C>
std::uint64_t golden_hash(Side side, int width) {
  CodecBlock<C> block(side, width);
  block.encode(golden_values(width));
  return fnv1a(block.bytes());
}

inline double mean_square_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum / static_cast<double>(a.size());
}

inline bool all_finite(const std::vector<float>& x) {
  for (const float v : x) {
    if (!std::isfinite(v)) return false;
  }
  return true;
}

/// Mean squared error of a codec on unit Gaussian data, over `blocks` blocks.
template <Codec C>
double gaussian_error(Side side, int width, int blocks) {
  Random random(7);
  double sum = 0;
  for (int i = 0; i < blocks; ++i) {
    const auto x = random.normals(static_cast<std::size_t>(block_tokens * width));
    sum += mean_square_error(x, round_trip<C>(side, width, x));
  }
  return sum / blocks;
}

/// Blocks `[64, width]` that codecs find hard: every number is finite.
inline std::vector<std::vector<float>> hard_blocks(int width) {
  const auto size = static_cast<std::size_t>(block_tokens * width);
  std::vector<std::vector<float>> blocks;
  for (const float v : {0.0f, -0.0f, 3.25f, -1000.3f, 65504.0f, -65504.0f, 7e4f, 1e-40f, 6e-8f,
                        -1e-38f, 3e38f, -3e38f, 1e-30f}) {
    blocks.emplace_back(size, v);
  }
  for (const float v : {65504.0f, 1e-40f, 1e-38f, 1e-20f, 7e4f, 3e38f}) {
    std::vector<float> x(size);
    for (std::size_t i = 0; i < size; ++i) {  // both signs within tokens and within channels
      x[i] = (i + i / static_cast<std::size_t>(width)) % 2 == 0 ? v : -v;
    }
    blocks.push_back(x);
    for (std::size_t i = 0; i < size; i += 3) x[i] = 0.0f;
    blocks.push_back(x);
  }
  Random random(3);
  std::vector<float> outlier = random.normals(size);
  for (std::size_t i = 5; i < size; i += static_cast<std::size_t>(width)) outlier[i] = 40000.0f;
  blocks.push_back(outlier);
  return blocks;
}

/// Numbers too small for the scales' format leave the bytes of zeros.
template <Codec C>
bool tiny_numbers_are_zeros(Side side, int width, float size) {
  Random random(6);
  const auto x = random.normals(static_cast<std::size_t>(block_tokens * width), size);
  CodecBlock<C> tiny(side, width), zeros(side, width);
  tiny.encode_in_basis(x);
  zeros.encode_in_basis(std::vector<float>(x.size(), 0.0f));
  return tiny.bytes() == zeros.bytes();
}

/// No finite input may become infinite or NaN.
template <Codec C>
bool stays_finite(Side side, int width) {
  for (const auto& x : hard_blocks(width)) {
    CodecBlock<C> block(side, width);
    block.encode_in_basis(x);
    if (!all_finite(block.decode_in_basis())) return false;
  }
  return true;
}

}  // namespace terse::tests
