/// Codes of a table's levels as halves of tensor-core operands: looked up by byte permutations, two
/// neighbours at a time. Else the readers of affine codes serve, with levels for codes.
#pragma once

#include <concepts>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/cuda/attend/code_fields.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/level_codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Levels of `Format` in fp16, cut into words of which a byte permutation takes any bytes.
template <class Format>
struct LevelBytes {
  [[nodiscard]] static consteval std::uint32_t half(unsigned code) noexcept {
    return to_f16(Format::level(code)).bits;
  }
  /// Levels of codes `first` and the next, each in a half.
  [[nodiscard]] static consteval std::uint32_t pair(unsigned first) noexcept {
    return half(first) | half(first + 1) << 16;
  }
  /// Lower (`shift` 0) or upper (8) bytes of the levels of four codes from `first` on.
  [[nodiscard]] static consteval std::uint32_t bytes(unsigned first, unsigned shift) noexcept {
    std::uint32_t word = 0;
    for (unsigned i = 0; i < 4; ++i) word |= (half(first + i) >> shift & 0xffu) << 8 * i;
    return word;
  }
};

template <class Codec>
struct LevelTable : LevelBytes<typename Codec::level_format> {
  using LevelBytes<typename Codec::level_format>::half;
  static constexpr unsigned top_code = (1u << Codec::bits) - 1u;

  /// Whether fp16 holds all levels but for rounding, and factors are what is stored. Of 4 bits only
  /// the upper eight levels are looked up: they are not negative, and the others their opposites.
  [[nodiscard]] static consteval bool serves() noexcept {
    for (unsigned c = 0; c <= top_code; ++c) {
      const std::uint32_t level = half(c), exponent = level >> 10 & 31u;
      if ((exponent == 0 && Codec::level_format::level(c) != 0.0f) || exponent == 31) return false;
      if (Codec::bits != 4) continue;
      if ((level ^ half(top_code - c)) != 0x8000u) return false;
      if (c > top_code / 2 && level >= 0x8000u) return false;
    }
    for (const unsigned bits : {0x0000u, 0x0001u, 0x0400u, 0x3555u, 0x3c00u, 0x4d01u, 0x7bffu}) {
      const F16 stored{static_cast<std::uint16_t>(bits)};
      if (Codec::level_format::scale_value(stored) != to_float(stored)) return false;
    }
    return true;
  }
};

/// Levels with one fp16 factor a token that tensor cores can take.
template <class C>
concept TokenLevels = LevelCodec<C> && !AffineCodec<C> && C::level_format::group == 0 &&
                      std::same_as<typename C::Scale, F16> && LevelTable<C>::serves();

/// Words of one lane of a bundle, read as levels: as LaneCodes, with levels for codes.
template <class Codec, int Bits = Codec::bits>
struct LaneLevels;

/// Levels of two bits each, whose bytes are in the order of neighbours: of the `field`-th of a
/// byte, neighbours 0 and 1 or (`half` 1) 2 and 3.
template <class Bytes>
[[nodiscard]] __device__ __forceinline__ std::uint32_t pair_of_two_bits(std::uint32_t codes,
                                                                        int field, int half) {
  // The two bytes of a level in the table are those at twice its code and behind it.
  const std::uint32_t which = (codes >> 2 * field & 0x03030303u) * 0x22u + 0x10101010u;
  return permuted(Bytes::pair(0), Bytes::pair(2), which >> 16 * half);
}

template <class Codec>
struct LaneLevels<Codec, 2> {
  static constexpr int words = 1;
  static constexpr float unit = 1.0f;
  static constexpr int field_step = 1;

  std::uint32_t bytes;  // of the word, in the order of neighbours

  __device__ __forceinline__ void set(int, std::uint32_t word) { bytes = ordered(word); }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    return pair_of_two_bits<LevelTable<Codec>>(bytes, field, half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }
};

/// Levels from `First` on of eight nibbles, below 8 each, whose bytes are in the order of
/// neighbours: of the field in the lower or (`is_upper`) the upper nibbles, neighbours 0 and 1 or
/// (`half` 1) 2 and 3. `flipped`: bits of the levels' upper bytes that change, a byte for each
/// nibble of a half.
template <class Bytes, unsigned First = 0>
[[nodiscard]] __device__ __forceinline__ std::uint32_t pair_of_nibbles(std::uint32_t nibbles,
                                                                       bool is_upper, int half,
                                                                       std::uint32_t flipped = 0) {
  const std::uint32_t which = nibbles >> 16 * half;
  return permuted(permuted(Bytes::bytes(First, 0), Bytes::bytes(First + 4, 0), which),
                  permuted(Bytes::bytes(First, 8), Bytes::bytes(First + 4, 8), which) ^ flipped,
                  is_upper ? 0x7351 : 0x6240);
}

/// The same of levels whose upper eight are not negative, and the lower ones their opposites.
struct SignedNibbles {
  std::uint32_t nibbles;     // all values below 16
  std::uint32_t magnitudes;  // their places from the middle on

  __device__ __forceinline__ void set(std::uint32_t values) {
    nibbles = values;
    const std::uint32_t upper = values & 0x88888888u;
    magnitudes = (values ^ ~(upper - (upper >> 3))) & 0x77777777u;
  }
  template <class Bytes>
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(bool is_upper, int half) const {
    // A byte permutation spreads the uppermost bits of nibbles over bytes.
    const std::uint32_t not_negative = permuted(nibbles << 4, nibbles, half == 0 ? 0xd9c8 : 0xfbea);
    return pair_of_nibbles<Bytes, 8>(magnitudes, is_upper, half, ~not_negative & 0x80808080u);
  }
};

/// Codes of 3 bits in nibbles, of a lane's bundle `v` whose bytes are in the order of neighbours:
/// of tile `tile` fields 0 and 2 (`odd` 0) or 1 and 3.
[[nodiscard]] __device__ __forceinline__ std::uint32_t nibbles_of_three_bits(
    const std::uint32_t (&v)[words_per_bundle(3)], int tile, int odd) {
  constexpr std::uint32_t bytes = 0x01010101;
  switch (2 * tile + odd) {  // code_field's bits, moved
    case 0:
      return (v[0] >> 2 & 0x07 * bytes) | (v[1] << 3 & 0x70 * bytes);
    case 1:
      return (v[0] >> 5 & 0x07 * bytes) | (v[1] & 0x70 * bytes);
    case 2:
      return (v[0] & 0x03 * bytes) | (v[1] >> 5 & 0x04 * bytes) | (v[2] << 1 & 0x70 * bytes);
    default:
      return (v[2] & 0x07 * bytes) | (v[1] << 4 & 0x10 * bytes) | (v[2] >> 1 & 0x60 * bytes);
  }
}

template <class Codec>
struct LaneLevels<Codec, 3> {
  static constexpr int words = words_per_bundle(3);
  static constexpr float unit = 1.0f;
  static constexpr int field_step = 2;

  std::uint32_t v[words];  // bytes in the order of neighbours

  __device__ __forceinline__ void set(int vector, std::uint32_t word) { v[vector] = ordered(word); }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    return pair_of_nibbles<LevelTable<Codec>>(nibbles_of_three_bits(v, field / 4, field % 2),
                                              field % 4 >= 2, half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }
};

template <class Codec>
struct LaneLevels<Codec, 4> {
  static constexpr int words = 1;
  static constexpr float unit = 1.0f;
  static constexpr int field_step = 1;

  SignedNibbles codes;

  __device__ __forceinline__ void set(int, std::uint32_t word) { codes.set(ordered(word)); }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    return codes.template pair<LevelTable<Codec>>(field == 1, half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
