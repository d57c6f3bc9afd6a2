/// Codes of a lane's stored words as halves of tensor-core operands: masked in place, two
/// neighbours at a time.
///
/// A pair of codes 16 bits apart are two fp16 numbers, each code * 2^(position - 24): subnormal, or
/// of the smallest exponent, which counts in the same steps. So codes may reach up to bit 10 of
/// their halves. The other operand takes the power of two.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/record.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// A word's bytes in the order of the neighbours whose codes they hold.
__device__ __forceinline__ std::uint32_t ordered(std::uint32_t word) {
  return permuted(word, 0, 0x3120);
}

/// Words of one lane of a bundle.
template <int Bits>
struct LaneCodes {
  static constexpr int words = words_per_bundle(Bits);
  static constexpr float unit = 16777216.0f;  ///< what undoes the exponent of codes
  /// Between two fields that are best read one after the other: 1, or 2 of four in a byte.
  static constexpr int field_step = 1;
  /// How far codes move down whose byte is the upper one of a half. Of 3 bits, what also brings the
  /// upper part of a code that lies across bytes next to its lower part.
  static constexpr int move = Bits == 3 ? 5 : 8;

  std::uint32_t low[words];
  std::uint32_t moved[words];

  TERSE_HOST_DEVICE void set(int vector, std::uint32_t word) noexcept {
    low[vector] = word;
    moved[vector] = word >> move;
  }

  /// Neighbours 0 and 1 (`half` 0) or 2 and 3 (1) of a field of code_field.
  [[nodiscard]] TERSE_HOST_DEVICE std::uint32_t pair(int field, int half) const noexcept {
    const CodeField f = code_field<Bits>(field);
    const auto mask = [&](unsigned bits, int at) { return ((1u << bits) - 1u) * 0x10001u << at; };
    const std::uint32_t word = half == 0 || splits(field) ? low[f.vector] : moved[f.vector];
    const std::uint32_t lower = word & mask(f.lower_bits, position(field, half));
    if (!splits(field)) return lower;
    return lower | (moved[f.upper_vector] &
                    mask(Bits - f.lower_bits, static_cast<int>(f.lower_bits) + 8 * half));
  }

  /// Lowest bit of the pair's codes in their halves.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int position(int field, int half) noexcept {
    return splits(field) ? 8 * half
                         : static_cast<int>(code_field<Bits>(field).shift) + (8 - move) * half;
  }

 private:
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr bool splits(int field) noexcept {
    return code_field<Bits>(field).lower_bits != Bits;
  }
};

/// Fields that depend on codes of the next two channels too.
template <class Codes>
concept ReadsNextChannels = requires(Codes codes, typename Codes::Word word) {
  codes.set(word, word, word);
};

/// Fields with a factor each for 16 channels of a token, of which element_factors makes halves.
template <class Codes>
concept ReadsFactors = requires(Codes codes, std::uint32_t pair) {
  codes.set_factors(pair, pair);
};

/// How a codec's words become operands.
template <class Codec>
struct FieldsOf {
  using type = LaneCodes<AffineFormat{Codec::affine_format}.bits>;
};

/// What the readers of affine codes take a codec for whose fields are levels, with a factor per
/// token or their own.
template <class Codec, int Bits, class Fields>
struct LevelsAsAffine {
  static constexpr AffineFormat affine_format{.bits = Bits};

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    return Codec::record(side, width);
  }
};
template <class Codec, int Bits, class Fields>
struct FieldsOf<LevelsAsAffine<Codec, Bits, Fields>> {
  using type = Fields;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
