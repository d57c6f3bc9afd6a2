/// Codes of an affine codec, computed and stored by a thread block, a thread a stored word.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// How a thread block shares the stored words of a whole block. The lanes of a warp have
/// neighbouring tokens (keys) or channels (values); 16 of them and two words along the other axis
/// where these are 16 banks apart, so that no two lanes meet in one. A thread has two words,
/// `lanes` tokens or channels apart.
template <AffineFormat Format, Side S>
struct WordShare {
  static constexpr bool is_key = S == Side::key;
  static constexpr bool per_channel = Format.granularity == Granularity::per_channel;
  static constexpr int codes = codes_per_lane(Format.bits);
  static constexpr int lanes = is_key && codes == 16 ? 16 : 32;
  /// Parameters of a word's codes lie side by side as the codes' channels or tokens do.
  static constexpr bool neighbours = is_key == per_channel;
  static constexpr bool one_for_codes = is_key && !per_channel && Format.group % codes == 0;
  static constexpr bool one_for_words = neighbours && Format.group % (2 * lanes) == 0;
};

/// First channel (keys) or token (values) of the codes of stored vector `run` of 16 lanes.
template <int Bits, Side S>
[[nodiscard]] __device__ __forceinline__ int first_of_run(int run) {
  constexpr int codes = codes_per_lane(Bits);
  return S == Side::key ? run * codes : run / 4 * (codes * 4) + run % 4 * 4;
}

/// Computes and stores the codes of a whole block of a width of whole stored vectors. `params
/// [group]`: divisor, inverse and offset of a step.
template <class C, Side S>
__device__ void encode_whole_words(int width, const TokenTile& tile, const float4* params,
                                   std::uint32_t* words) {
  constexpr AffineFormat format = C::affine_format;
  using Share = WordShare<format, S>;
  constexpr int bits = format.bits, lanes = Share::lanes;
  const int runs = vectors_per_tile(bits, S, width);
  const int places = S == Side::key ? block_tokens : width;
  const int pairs = ceil_div(places, 2 * lanes);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int team = static_cast<int>(threadIdx.x) / lanes;
  const int teams = static_cast<int>(blockDim.x) / lanes;
  int shared_by = 0;  // a pair of words, by 2^shared_by teams
  while (pairs << (shared_by + 1) <= teams) ++shared_by;
  for (int pair = team >> shared_by; pair < pairs; pair += teams >> shared_by) {
    int place[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      // Behind the last channel come those before it again.
      place[w] = min((2 * pair + w) * lanes + lane, places - 16 + lane % 16);
    }
    for (int run = team & ((1 << shared_by) - 1); run < runs; run += 1 << shared_by) {
      const int start = first_of_run<bits, S>(run);
      const float* x[2];
      int token[2], channel[2];
      const float4* param[2];
      float4 own[2];
      std::uint32_t codes[2] = {};
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        token[w] = S == Side::key ? place[w] : start;
        channel[w] = S == Side::key ? start : place[w];
        x[w] = tile.row(token[w]) + channel[w];
        param[w] = params + affine_param_index(format, width, token[w], channel[w]);
      }
#pragma unroll
      for (int k = 0; k < Share::codes; ++k) {
        constexpr int dense = 4096;  // any width gives the same distances
        const WordCode code = word_code<bits>(S, dense, 0, k);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          if (w > 0 && Share::one_for_words) {
            own[w] = own[0];
          } else if (Share::neighbours) {
            own[w] = param[w][S == Side::key ? code.channel : code.token];
          } else if (Share::one_for_codes) {
            if (k == 0) own[w] = *param[w];
          } else {
            own[w] = params[affine_param_index(format, width, token[w] + code.token,
                                               channel[w] + code.channel)];
          }
          const typename C::Step step{own[w].x, own[w].y, own[w].z};
          codes[w] += C::code_of(x[w][code.token * tile.stride + code.channel], step) << code.shift;
        }
      }
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        words[(place[w] / 16 * runs + run) * 16 + place[w] % 16] = codes[w];
      }
    }
  }
}

/// Codes in a stored word, and the bits that are theirs.
struct PartOfWord {
  std::uint32_t codes = 0, mask = 0;
};

/// Codes of those of the tile's tokens that a stored word holds.
template <class C, Side S>
[[nodiscard]] __device__ __forceinline__ PartOfWord encode_word(int width, int word,
                                                                const TokenTile& tile,
                                                                const float4* params) {
  constexpr AffineFormat format = C::affine_format;
  constexpr int bits = format.bits;
  PartOfWord part;
#pragma unroll 4
  for (int k = 0; k < codes_per_lane(bits); ++k) {
    const WordCode code = word_code<bits>(S, width, word, k);
    const int t = code.token - tile.first;
    if (code.channel >= width || t < 0 || t >= tile.count) continue;
    const float4 own = params[affine_param_index(format, width, code.token, code.channel)];
    const typename C::Step step{own.x, own.y, own.z};
    part.codes |= C::code_of(tile.row(code.token)[code.channel], step) << code.shift;
    part.mask |= ((1u << bits) - 1u) << code.shift;
  }
  return part;
}

/// Whether run `run` of the stored words of a channel of values holds codes of the tile's tokens.
template <int Bits>
[[nodiscard]] __device__ __forceinline__ bool run_has_tokens(int width, int run,
                                                             const TokenTile& tile) {
  bool any = false;
#pragma unroll
  for (int k = 0; k < codes_per_lane(Bits); k += 4) {
    const int token = word_code<Bits>(Side::value, width, run * 16, k).token;
    any = any || (token < tile.first + tile.count && token + 4 > tile.first);
  }
  return any;
}

/// Computes and stores the codes of the tile's tokens. By all threads, which do not meet at the
/// end.
template <class C, Side S>
__device__ void encode_words(int width, const TokenTile& tile, const float* params,
                             std::byte* block) {
  constexpr int bits = AffineFormat{C::affine_format}.bits;
  auto* words = reinterpret_cast<std::uint32_t*>(block);
  const auto* groups = reinterpret_cast<const float4*>(params);
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (tile.count == block_tokens && width % (S == Side::key ? codes_per_lane(bits) : 16) == 0) {
    return encode_whole_words<C, S>(width, tile, groups, words);
  }
  const int runs = vectors_per_tile(bits, S, width);
  if constexpr (S == Side::key) {  // codes of a token fill words of their own
    for (int i = thread; i < tile.count * runs; i += threads) {
      const int token = tile.first + i % tile.count;
      const int word = (token / 16 * runs + i / tile.count) * 16 + token % 16;
      words[word] = encode_word<C, S>(width, word, tile, groups).codes;
    }
  } else {
    const int channels = stored_channels(bits, S, width);
    for (int run = 0; run < runs; ++run) {
      if (!run_has_tokens<bits>(width, run, tile)) continue;
      for (int c = thread; c < channels; c += threads) {
        const int word = (c / 16 * runs + run) * 16 + c % 16;
        const PartOfWord part = encode_word<C, S>(width, word, tile, groups);
        if (part.mask != 0) words[word] = (words[word] & ~part.mask) | part.codes;
      }
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
