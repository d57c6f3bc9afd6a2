/// Stored order of packed codes of a block `[64 tokens, width]`, 1, 2, 3, 4 or 8 bits each.
///
/// The order is that of dot products: a 64-byte vector holds 16 lanes of 4 bytes, and a byte holds
/// 8 / bits codes. Keys: lane = token, everything in a lane = channels; values: lane = channel,
/// everything in a lane = tokens. One AND (after a shift) of a vector yields 64 codes that meet
/// four neighbouring query channels (keys) or probabilities (values) in an integer dot product; one
/// AND of a lane yields two neighbouring codes 16 bits apart, half of a tensor core's operand
/// register.
///
/// Codes of 1 bit share bytes in two tiles: the lower four of a byte are those of a lane, the upper
/// four of the lane 16 on, for a block has no more than 64 tokens.
///
/// Codes of 3 bits lie in threes of vectors: a byte and those 64 and 128 bytes on hold four codes
/// of a lane and four of the lane 16 on. Six of the eight lie in one byte, two across two. Shifts
/// of the fields are such that 16-bit halves of a word, or of a word moved down by 5, have every
/// code within their 11 lower bits: as fp16 numbers they are proportional to it.
/// docs/stored_format.md has the picture.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Where a code lies: in one byte, or with its upper bits in another.
struct CodePlace {
  std::size_t byte;
  unsigned shift;
  unsigned lower_bits;  ///< bits of the code in `byte`; fewer than all for some of 3 bits
  std::size_t upper_byte;
  unsigned upper_shift;
};

/// Tiles of 16 lanes whose codes share words.
TERSE_HOST_DEVICE constexpr int tiles_per_bundle(int bits) noexcept {
  return bits == 1 || bits == 3 ? 2 : 1;
}

/// Codes of a lane that lie together: those of its four bytes, of 1 and 3 bits half of those of
/// four and twelve.
TERSE_HOST_DEVICE constexpr int codes_per_lane(int bits) noexcept {
  return tiles_per_bundle(bits) == 2 ? 16 : 32 / bits;
}

/// A bundle is the fewest stored words that hold whole codes: one word, of 3 bits three that lie 16
/// apart.
TERSE_HOST_DEVICE constexpr int words_per_bundle(int bits) noexcept { return bits == 3 ? 3 : 1; }
TERSE_HOST_DEVICE constexpr int codes_per_bundle(int bits) noexcept {
  return codes_per_lane(bits) * tiles_per_bundle(bits);
}

/// Byte of a lane that holds the code of the `i`-th of four neighbours: 0, 2, 1, 3.
TERSE_HOST_DEVICE constexpr int lane_byte(int i) noexcept { return (i & 1) * 2 + i / 2; }

/// Lanes' runs of codes_per_lane codes: those of a token (keys) or of a channel (values).
TERSE_HOST_DEVICE constexpr int runs_per_lane(int bits, Side side, int width) noexcept {
  return ceil_div(side == Side::key ? width : block_tokens, codes_per_lane(bits));
}

/// Tiles of 16 lanes: of tokens (keys) or channels (values).
TERSE_HOST_DEVICE constexpr int stored_tiles(Side side, int width) noexcept {
  return ceil_div(side == Side::key ? block_tokens : width, 16);
}

/// Vectors of a run of the bundles that begin with `tile`. A last tile without a partner leaves out
/// the vector that has none of its codes.
TERSE_HOST_DEVICE constexpr int vectors_per_run(int bits, Side side, int width, int tile) noexcept {
  return bits == 3 && tile + 1 == stored_tiles(side, width) ? 2 : words_per_bundle(bits);
}

/// First stored vector of run `run` of the bundles that hold codes of `tile`.
TERSE_HOST_DEVICE constexpr int bundle_vector(int bits, Side side, int width, int tile,
                                              int run) noexcept {
  const int pair = tile / tiles_per_bundle(bits);
  return pair * words_per_bundle(bits) * runs_per_lane(bits, side, width) +
         run * vectors_per_run(bits, side, width, pair * tiles_per_bundle(bits));
}

TERSE_HOST_DEVICE constexpr std::size_t codes_bytes(int bits, Side side, int width) noexcept {
  const int tiles = stored_tiles(side, width), last = tiles - 1;
  const int runs = runs_per_lane(bits, side, width);
  const int begin = bundle_vector(bits, side, width, last, 0);
  const int first_of_last = last / tiles_per_bundle(bits) * tiles_per_bundle(bits);
  return static_cast<std::size_t>(begin +
                                  runs * vectors_per_run(bits, side, width, first_of_last)) *
         64;
}
template <int Bits>
TERSE_HOST_DEVICE constexpr std::size_t codes_bytes(Side side, int width) noexcept {
  return codes_bytes(Bits, side, width);
}

/// Where one of the codes lies that share a byte, of 3 bits a byte in each of three vectors.
struct CodeField {
  int vector;
  unsigned shift;
  unsigned lower_bits;  ///< all bits of the code, or those in `vector`
  int upper_vector;     ///< of the others
  unsigned upper_shift;
};

/// The `i`-th: 0 <= i < 8 / Bits, of 3 bits 0 ... 3 in the first tile and 4 ... 7 in the second.
template <int Bits>
TERSE_HOST_DEVICE constexpr CodeField code_field(int i) noexcept {
  static_assert(Bits == 1 || Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8);
  if constexpr (Bits == 3) {
    if (i == 4) return {0, 0, 2, 1, 7};
    if (i == 7) return {1, 0, 1, 2, 6};
    const int vector = (0x02201100 >> 4 * i) & 3;
    return {vector, static_cast<unsigned>((0x03004152 >> 4 * i) & 7), Bits, vector, 0};
  } else {
    return {0, static_cast<unsigned>(i * Bits), Bits, 0, 0};
  }
}

/// The field of a tile's `i`-th code of a run and byte.
template <int Bits>
TERSE_HOST_DEVICE constexpr int field_of(int tile, int i) noexcept {
  return tile % tiles_per_bundle(Bits) * (codes_per_lane(Bits) / 4) + i;
}

template <int Bits>
TERSE_HOST_DEVICE constexpr CodePlace code_place(Side side, int width, int token,
                                                 int channel) noexcept {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const bool is_key = side == Side::key;
  const int lane = is_key ? token : channel;
  const int along = is_key ? channel : token;
  // Fields of a byte are channels 4 apart, or tokens 16 apart: 16 tokens are what a tensor core's
  // operand spans, while a width need not be a multiple of more than 16.
  const int run = is_key ? channel / (4 * fields) : token / (16 * fields) * 4 + token % 16 / 4;
  const int tile = lane / 16;
  const CodeField field =
      code_field<Bits>(field_of<Bits>(tile, (is_key ? channel / 4 : token / 16) % fields));
  const int first_byte =
      bundle_vector(Bits, side, width, tile, run) * 64 + lane % 16 * 4 + lane_byte(along % 4);
  const auto first = static_cast<std::size_t>(first_byte);
  return {first + static_cast<std::size_t>(field.vector) * 64, field.shift, field.lower_bits,
          first + static_cast<std::size_t>(field.upper_vector) * 64, field.upper_shift};
}

/// Tokens of an aligned run of which no two have codes in the same byte: of keys those of a tile
/// that shares no words with another, of values those that are not 16 apart.
template <int Bits>
TERSE_HOST_DEVICE constexpr int code_tokens_at_once(Side side) noexcept {
  return Bits == 8 || (side == Side::key && tiles_per_bundle(Bits) == 1) ? block_tokens : 16;
}

/// A code of a bundle.
struct BundleCode {
  int token;
  int channel;      ///< may be beyond the width, where the place stays empty
  CodeField field;  ///< shifts are those in words, whose first byte is the lowest
};

/// Bundles of a block's codes, and words of theirs.
template <int Bits>
TERSE_HOST_DEVICE constexpr int code_bundles(Side side, int width) noexcept {
  return ceil_div(stored_tiles(side, width), tiles_per_bundle(Bits)) *
         runs_per_lane(Bits, side, width) * 16;
}

/// A bundle's first stored word, and how many it has, 16 apart.
struct BundleWords {
  int first;
  int count;
};
template <int Bits>
TERSE_HOST_DEVICE constexpr BundleWords bundle_words(Side side, int width, int bundle) noexcept {
  if constexpr (tiles_per_bundle(Bits) == 1) return {bundle, 1};
  const int runs = runs_per_lane(Bits, side, width);
  const int tile = bundle / 16 / runs * tiles_per_bundle(Bits), run = bundle / 16 % runs;
  return {bundle_vector(Bits, side, width, tile, run) * 16 + bundle % 16,
          vectors_per_run(Bits, side, width, tile)};
}

/// The `i`-th code of a bundle, 0 <= i < codes_per_bundle(Bits): code_place turned round.
template <int Bits>
TERSE_HOST_DEVICE constexpr BundleCode bundle_code(Side side, int width, int bundle,
                                                   int i) noexcept {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const int runs = runs_per_lane(Bits, side, width), run = bundle / 16 % runs;
  const int of_bundle = tiles_per_bundle(Bits) == 1 ? 0 : i / (4 * fields);
  const int neighbour = i % 4, along = i / 4 - of_bundle * fields;
  const int tile = bundle / 16 / runs * tiles_per_bundle(Bits) + of_bundle;
  const int lane = tile * 16 + bundle % 16;
  CodeField field = code_field<Bits>(i / 4);
  field.shift += static_cast<unsigned>(lane_byte(neighbour) * 8);
  field.upper_shift += static_cast<unsigned>(lane_byte(neighbour) * 8);
  if (side == Side::key) return {lane, (run * fields + along) * 4 + neighbour, field};
  return {(run / 4 * fields + along) * 16 + run % 4 * 4 + neighbour, lane, field};
}

template <int Bits>
TERSE_HOST_DEVICE inline void store_code(std::byte* codes, CodePlace place,
                                         unsigned code) noexcept {
  const auto put = [&](std::size_t byte, unsigned shift, unsigned bits, unsigned part) {
    const unsigned mask = ((1u << bits) - 1u) << shift;
    const unsigned others = static_cast<unsigned>(codes[byte]) & ~mask;
    codes[byte] = static_cast<std::byte>(others | ((part << shift) & mask));
  };
  put(place.byte, place.shift, Bits == 3 ? place.lower_bits : Bits, code);
  if (Bits == 3 && place.lower_bits != Bits) {
    put(place.upper_byte, place.upper_shift, Bits - place.lower_bits, code >> place.lower_bits);
  }
}

template <int Bits>
TERSE_HOST_DEVICE inline unsigned load_code(const std::byte* codes, CodePlace place) noexcept {
  const unsigned lower = static_cast<unsigned>(codes[place.byte]) >> place.shift;
  if constexpr (Bits == 3) {
    const unsigned upper = static_cast<unsigned>(codes[place.upper_byte]) >> place.upper_shift;
    const unsigned mask = (1u << place.lower_bits) - 1u;
    return (lower & mask) | ((upper << place.lower_bits) & ((1u << Bits) - 1u));
  } else {
    return lower & ((1u << Bits) - 1u);
  }
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
