/// Stored order of packed codes of a block `[64 tokens, width]`, 2, 4 or 8 bits each.
///
/// The order is that of dot products: a 64-byte vector holds 16 lanes of 4 bytes, and a byte holds
/// 8 / bits codes. Keys: lane = token, everything in a lane = channels; values: lane = channel,
/// everything in a lane = tokens. One AND (after a shift) of a vector yields 64 codes that meet
/// four neighbouring query channels (keys) or probabilities (values) in an integer dot product; one
/// AND of a lane yields two neighbouring codes 16 bits apart, half of a tensor core's operand
/// register. docs/stored_format.md has the picture.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Byte and bit at which a code lies.
struct CodePlace {
  std::size_t byte;
  unsigned shift;
};

/// Codes in a lane of four bytes.
TERSE_HOST_DEVICE constexpr int codes_per_lane(int bits) noexcept { return 32 / bits; }

/// Byte of a lane that holds the code of the `i`-th of four neighbours: 0, 2, 1, 3.
TERSE_HOST_DEVICE constexpr int lane_byte(int i) noexcept { return (i & 1) * 2 + i / 2; }

/// Channels covered by the stored vectors: `width` rounded up to a whole lane (keys) or to 16 lanes
/// (values).
TERSE_HOST_DEVICE constexpr int stored_channels(int bits, Side side, int width) noexcept {
  return round_up(width, side == Side::key ? codes_per_lane(bits) : 16);
}

/// Stored vectors of 16 lanes: of 16 tokens (keys) or 16 channels (values).
TERSE_HOST_DEVICE constexpr int vectors_per_tile(int bits, Side side, int width) noexcept {
  return ceil_div(side == Side::key ? width : block_tokens, codes_per_lane(bits));
}

template <int Bits>
TERSE_HOST_DEVICE constexpr CodePlace code_place(Side side, int width, int token,
                                                 int channel) noexcept {
  static_assert(Bits == 2 || Bits == 4 || Bits == 8);
  constexpr int fields = 8 / Bits;
  const bool is_key = side == Side::key;
  const int lane = is_key ? token : channel;
  const int along = is_key ? channel : token;
  // Fields of a byte are channels 4 apart, or tokens 16 apart: 16 tokens are what a tensor core's
  // operand spans, while a width need not be a multiple of more than 16.
  const int in_tile = is_key ? channel / (4 * fields) : token / (16 * fields) * 4 + token % 16 / 4;
  const int field = is_key ? channel / 4 % fields : token / 16 % fields;
  const int vector = lane / 16 * vectors_per_tile(Bits, side, width) + in_tile;
  return {static_cast<std::size_t>(vector * 64 + lane % 16 * 4 + lane_byte(along % 4)),
          static_cast<unsigned>(field * Bits)};
}

/// A place of a stored word of four bytes, one lane of a vector.
struct WordCode {
  int token;
  int channel;     ///< may be beyond the width, where the place stays empty
  unsigned shift;  ///< of the code in the word, its first byte the lowest
};

/// Stored words of a block's codes.
template <int Bits>
TERSE_HOST_DEVICE constexpr int code_words(Side side, int width) noexcept {
  return block_tokens * stored_channels(Bits, side, width) * Bits / 32;
}

/// The `i`-th code of a stored word, 0 <= i < codes_per_lane(Bits): code_place turned round.
template <int Bits>
TERSE_HOST_DEVICE constexpr WordCode word_code(Side side, int width, int word, int i) noexcept {
  constexpr int fields = 8 / Bits;
  const int tile = vectors_per_tile(Bits, side, width);
  const int vector = word / 16, neighbour = i % 4, field = i / 4;
  const int lane = vector / tile * 16 + word % 16, in_tile = vector % tile;
  const auto shift = static_cast<unsigned>(lane_byte(neighbour) * 8 + field * Bits);
  if (side == Side::key) return {lane, (in_tile * fields + field) * 4 + neighbour, shift};
  return {(in_tile / 4 * fields + field) * 16 + in_tile % 4 * 4 + neighbour, lane, shift};
}

template <int Bits>
TERSE_HOST_DEVICE constexpr std::size_t codes_bytes(Side side, int width) noexcept {
  return static_cast<std::size_t>(block_tokens) *
         static_cast<std::size_t>(stored_channels(Bits, side, width)) * Bits / 8;
}

template <int Bits>
TERSE_HOST_DEVICE inline void store_code(std::byte* codes, CodePlace place,
                                         unsigned code) noexcept {
  const unsigned mask = ((1u << Bits) - 1u) << place.shift;
  const unsigned others = static_cast<unsigned>(codes[place.byte]) & ~mask;
  codes[place.byte] = static_cast<std::byte>(others | code << place.shift);
}

template <int Bits>
TERSE_HOST_DEVICE inline unsigned load_code(const std::byte* codes, CodePlace place) noexcept {
  return (static_cast<unsigned>(codes[place.byte]) >> place.shift) & ((1u << Bits) - 1u);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
