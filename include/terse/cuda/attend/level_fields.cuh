/// Codes of a table's levels as halves of tensor-core operands: looked up by byte permutations, two
/// neighbours at a time. Else the readers of affine codes serve, with levels for codes.
#pragma once

#include <concepts>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/cuda/attend/code_fields.cuh"
#include "terse/policy/record.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/level_codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Levels in fp16, cut into words of which a byte permutation takes any bytes.
template <class Codec>
struct LevelTable {
  static constexpr unsigned top_code = (1u << Codec::bits) - 1u;

  [[nodiscard]] static consteval std::uint32_t half(unsigned code) noexcept {
    return to_f16(Codec::level_format::level(code)).bits;
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

/// Bytes of the eight of `low` and `high` that the lower four nibbles of `which` name, which are
/// below 8.
__device__ __forceinline__ std::uint32_t permuted(std::uint32_t low, std::uint32_t high,
                                                  std::uint32_t which) {
  std::uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(which));
  return r;
}

/// Words of one lane of a bundle, read as levels: as LaneCodes, with levels for codes.
template <class Codec, int Bits = Codec::bits>
struct LaneLevels;

template <class Codec>
struct LaneLevels<Codec, 2> {
  using Table = LevelTable<Codec>;
  static constexpr int words = 1;
  static constexpr float unit = 1.0f;

  std::uint32_t bytes;  // of the word, in the order of neighbours

  __device__ __forceinline__ void set(int, std::uint32_t word) {
    bytes = permuted(word, 0, 0x3120);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    // The two bytes of a level in the table are those at twice its code and behind it.
    const std::uint32_t which = (bytes >> 2 * field & 0x03030303u) * 0x22u + 0x10101010u;
    return permuted(Table::pair(0), Table::pair(2), which >> 16 * half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }
};

template <class Codec>
struct LaneLevels<Codec, 3> {
  using Table = LevelTable<Codec>;
  using Lane = LaneCodes<3>;
  static constexpr int words = Lane::words;
  static constexpr float unit = 1.0f;

  Lane lane;

  __device__ __forceinline__ void set(int vector, std::uint32_t word) { lane.set(vector, word); }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    // Both halves of a field, for they share permutations: nibbles 0 and 1, and 2 and 3.
    const std::uint32_t which = codes(field, 0) + (codes(field, 1) << 8);
    return permuted(permuted(Table::bytes(0, 0), Table::bytes(4, 0), which),
                    permuted(Table::bytes(0, 8), Table::bytes(4, 8), which),
                    half == 0 ? 0x5140 : 0x7362);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }

 private:
  /// Two codes in nibbles 0 and 1.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t codes(int field, int half) const {
    const std::uint32_t x = lane.pair(field, half) >> Lane::position(field, half);
    return x + (x >> 12);
  }
};

template <class Codec>
struct LaneLevels<Codec, 4> {
  using Table = LevelTable<Codec>;
  static constexpr int words = 1;
  static constexpr float unit = 1.0f;

  std::uint32_t upper;       // the uppermost bits of codes
  std::uint32_t magnitudes;  // their places from the middle on, in nibbles; bytes 0, 2, 1, 3

  __device__ __forceinline__ void set(int, std::uint32_t word) {
    upper = word & 0x88888888u;
    magnitudes = permuted((word ^ (upper - (upper >> 3)) ^ 0x77777777u) & 0x77777777u, 0, 0x3120);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    const std::uint32_t which = magnitudes >> 16 * half;
    const std::uint32_t sizes = permuted(permuted(Table::bytes(8, 0), Table::bytes(12, 0), which),
                                         permuted(Table::bytes(8, 8), Table::bytes(12, 8), which),
                                         field == 0 ? 0x6240 : 0x7351);
    return sizes | (~(upper << (12 - 4 * field - 8 * half)) & 0x80008000u);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }
};

/// What the readers of affine codes are to take such a codec for.
template <TokenLevels Codec>
struct LevelsAsAffine {
  static constexpr AffineFormat affine_format{.bits = Codec::bits};  // a factor per token

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    return Codec::record(side, width);
  }
};

template <class Codec>
struct FieldsOf<LevelsAsAffine<Codec>> {
  using type = LaneLevels<Codec>;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
