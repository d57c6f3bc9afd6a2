/// Codes along a trellis as halves of tensor-core operands: levels looked up by byte permutations.
///
/// A level depends on its own code and on the path's bits of the two channels behind it
/// (quant/trellis.hpp). Of keys those are neighbours in a word or in the next one of the token; of
/// values the same bits of the words of the next two channels. So logic on whole words finds what
/// chooses the levels of 16 codes, in nibbles, which byte permutations read.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/code_fields.cuh"
#include "terse/cuda/attend/level_fields.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/quant/shaped_trellis.hpp"
#include "terse/quant/trellis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Trellises that tensor cores can take; keys have no codes of 1 bit.
template <class C>
concept TrellisFields = TrellisCodec<C> && C::trellis_spec.bits <= 3;

/// Codes of a lane along a trellis, read as levels: as LaneCodes, with levels for codes. `Word`: a
/// lane's codes, bytes in the order of neighbours.
template <int Bits>
struct LaneTrellis;

template <>
struct LaneTrellis<2> {
  using Word = std::uint32_t;
  static constexpr int words = 1;
  static constexpr float unit = 1.0f;
  static constexpr int field_step = 2;

  /// A token's codes of 16 channels, and of the 16 behind them (0 where there are none).
  __device__ __forceinline__ void set_channels(std::uint32_t word, std::uint32_t next) {
    // Bytes 0 and 2: codes of channels 4, 8, 12, 16 and of 5, 9, 13, 17.
    const std::uint32_t ahead = permuted(word, next, 0x6240) >> 2;
    set(ordered(word), permuted(word, ahead, 0x4312), permuted(word, ahead, 0x6431));
  }
  /// Codes, those of the next channel and those of the one behind it.
  __device__ __forceinline__ void set(Word own, Word next, Word second) {
    const std::uint32_t upper = own ^ (second & 0x55555555u);  // 2 m + z1
    even_ = chosen(next, upper << 1);
    odd_ = chosen(next >> 2, upper >> 1);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    return pair_of_nibbles<LevelBytes<Trellis<2>>>(field % 2 == 0 ? even_ : odd_, field >= 2, half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }

 private:
  /// Nibbles 4 m + 2 z1 + z0 of every other field.
  [[nodiscard]] __device__ __forceinline__ static std::uint32_t chosen(std::uint32_t path,
                                                                       std::uint32_t upper) {
    return (path & 0x11111111u) | (upper & 0x66666666u);
  }

  std::uint32_t even_, odd_;  // of fields 0 and 2, and of 1 and 3
};

/// Of one of the two tiles whose codes share words; its fields are 0 to 3. Of values only.
template <>
struct LaneTrellis<1> {
  using Word = std::uint32_t;  ///< codes in the lower halves of bytes
  static constexpr int words = 1;
  static constexpr float unit = 1.0f;
  static constexpr int field_step = 1;

  [[nodiscard]] __device__ __forceinline__ static Word word_of(const std::uint32_t (&v)[words],
                                                               int tile) {
    return v[0] >> 4 * tile;
  }
  [[nodiscard]] __device__ __forceinline__ static Word choose(bool is_first, Word first,
                                                              Word second) {
    return is_first ? first : second;
  }
  __device__ __forceinline__ void set(Word own, Word next, Word second) {
    // 2 z1 + z0 of fields 0 and 2, then of 1 and 3.
    const std::uint32_t upper = own ^ second;
    codes_ = (next & 0x05050505u) | (upper << 1 & 0x0a0a0a0au) | (next << 3 & 0x50505050u) |
             (upper << 4 & 0xa0a0a0a0u);
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    return pair_of_two_bits<LevelBytes<Trellis<1>>>(codes_, field % 2 * 2 + field / 2, half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }

 private:
  std::uint32_t codes_;
};

/// Of one of the two tiles whose codes share words; its fields are 0 to 3.
template <>
struct LaneTrellis<3> {
  static constexpr int words = words_per_bundle(3);
  static constexpr float unit = 1.0f;
  static constexpr int field_step = 2;

  /// Codes in nibbles.
  struct Word {
    std::uint32_t even, odd;  ///< of fields 0 and 2, and of 1 and 3
  };
  [[nodiscard]] __device__ __forceinline__ static Word word_of(const std::uint32_t (&v)[words],
                                                               int tile) {
    return {nibbles_of_three_bits(v, tile, 0), nibbles_of_three_bits(v, tile, 1)};
  }
  [[nodiscard]] __device__ __forceinline__ static Word choose(bool is_first, const Word& first,
                                                              const Word& second) {
    return {is_first ? first.even : second.even, is_first ? first.odd : second.odd};
  }
  /// A token's codes of 16 channels, and the first word of the 16 behind them (0 where there are
  /// none), of tile `tile`.
  __device__ __forceinline__ void set_channels(const Word& own, std::uint32_t next, int tile) {
    // Behind field 1 lies field 2, behind field 3 the next 16 channels' first.
    const std::uint32_t first = ordered(next) >> (tile == 0 ? 2 : 0);
    const std::uint32_t ahead = (own.even >> 4 & 0x0f0f0f0fu) | (first << 4 & 0xf0f0f0f0u);
    set(own, {permuted(own.even, own.odd, 0x4321), permuted(own.odd, ahead, 0x4321)},
        {permuted(own.even, own.odd, 0x5432), permuted(own.odd, ahead, 0x5432)});
  }
  __device__ __forceinline__ void set(const Word& own, const Word& next, const Word& second) {
    even_.set(chosen(own.even, next.even, second.even));
    odd_.set(chosen(own.odd, next.odd, second.odd));
  }
  [[nodiscard]] __device__ __forceinline__ std::uint32_t pair(int field, int half) const {
    const SignedNibbles& own = field % 2 == 0 ? even_ : odd_;
    return own.pair<LevelBytes<Trellis<3>>>(field >= 2, half);
  }
  [[nodiscard]] __device__ static constexpr int position(int, int) { return 0; }

 private:
  /// Nibbles 4 m + 2 z1 + z0.
  [[nodiscard]] __device__ __forceinline__ static std::uint32_t chosen(std::uint32_t own,
                                                                       std::uint32_t next,
                                                                       std::uint32_t second) {
    return (own ^ (second & 0x11111111u)) << 1 | (next & 0x11111111u);
  }

  SignedNibbles even_, odd_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
