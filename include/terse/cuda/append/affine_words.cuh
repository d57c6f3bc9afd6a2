/// Codes of an affine codec, computed and stored by a thread block, a thread a bundle of stored
/// words.
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
/// neighbouring tokens (keys) or channels (values); 16 of them and two runs along the other axis
/// where these are 16 banks apart, so that no two lanes meet in one, or where a bundle holds codes
/// of two. A thread has the codes of two, `lanes` tokens or channels apart.
template <AffineFormat Format, Side S>
struct WordShare {
  static constexpr bool is_key = S == Side::key;
  static constexpr bool per_channel = Format.granularity == Granularity::per_channel;
  static constexpr int codes = codes_per_lane(Format.bits);
  static constexpr int tiles = tiles_per_bundle(Format.bits);
  static constexpr int words = words_per_bundle(Format.bits);
  static constexpr int lanes = (is_key && codes == 16) || tiles == 2 ? 16 : 32;
  /// Parameters of a word's codes lie side by side as the codes' channels or tokens do.
  static constexpr bool neighbours = is_key == per_channel;
  static constexpr bool one_for_codes = is_key && !per_channel && Format.group % codes == 0;
  static constexpr bool one_for_words = neighbours && Format.group % (2 * lanes) == 0;
};

/// Adds a code to a bundle's words, where it has its place free.
template <int Bits>
__device__ __forceinline__ void add_code(std::uint32_t (&words)[words_per_bundle(Bits)],
                                         const CodeField& field, unsigned code) {
  if (Bits != 3 || field.lower_bits == Bits) {
    words[field.vector] += code << field.shift;
  } else {
    words[field.vector] += (code & ((1u << field.lower_bits) - 1u)) << field.shift;
    words[field.upper_vector] += code >> field.lower_bits << field.upper_shift;
  }
}

/// First channel (keys) or token (values) of the codes of run `run` of 16 lanes.
template <int Bits, Side S>
[[nodiscard]] __device__ __forceinline__ int first_of_run(int run) {
  constexpr int codes = codes_per_lane(Bits);
  return S == Side::key ? run * codes : run / 4 * (codes * 4) + run % 4 * 4;
}

/// Computes and stores the codes of a whole block of a width of whole bundles. `params
/// [group]`: divisor, inverse and offset of a step.
template <class C, Side S>
__device__ void encode_whole_words(int width, const TokenTile& tile, const float4* params,
                                   std::uint32_t* words) {
  constexpr AffineFormat format = C::affine_format;
  using Share = WordShare<format, S>;
  constexpr int bits = format.bits, lanes = Share::lanes;
  const int runs = runs_per_lane(bits, S, width);
  const int places = S == Side::key ? block_tokens : width;
  const int pairs = ceil_div(places, 2 * lanes);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int team = static_cast<int>(threadIdx.x) / lanes;
  const int teams = static_cast<int>(blockDim.x) / lanes;
  int shared_by = 0;  // a pair of lanes, by 2^shared_by teams
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
      std::uint32_t codes[2 / Share::tiles][Share::words] = {};
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
        const BundleCode code = bundle_code<bits>(S, dense, 0, k);
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
          const int in_bundle = w % Share::tiles * Share::codes + k;
          add_code<bits>(codes[w / Share::tiles], bundle_code<bits>(S, dense, 0, in_bundle).field,
                         C::code_of(x[w][code.token * tile.stride + code.channel], step));
        }
      }
#pragma unroll
      for (int w = 0; w < 2; w += Share::tiles) {
        const int first = bundle_vector(bits, S, width, place[w] / 16, run) * 16 + place[w] % 16;
#pragma unroll
        for (int v = 0; v < Share::words; ++v) words[first + v * 16] = codes[w / Share::tiles][v];
      }
    }
  }
}

/// Codes in a bundle's words, and the bits that are theirs.
template <int Bits>
struct PartOfBundle {
  std::uint32_t codes[words_per_bundle(Bits)] = {}, mask[words_per_bundle(Bits)] = {};
};

/// Codes of those of the tile's tokens that a bundle holds.
template <class C, Side S>
[[nodiscard]] __device__ __forceinline__ auto encode_bundle(int width, int bundle,
                                                            const TokenTile& tile,
                                                            const float4* params) {
  constexpr AffineFormat format = C::affine_format;
  constexpr int bits = format.bits, codes = codes_per_lane(bits);
  PartOfBundle<bits> part;
#pragma unroll
  for (int lane = 0; lane < tiles_per_bundle(bits); ++lane) {
    if (S == Side::key && tiles_per_bundle(bits) > 1) {  // codes of a lane are of one token
      const int t = bundle_code<bits>(S, width, bundle, lane * codes).token - tile.first;
      if (t < 0 || t >= tile.count) continue;
    }
    // Whole where a word's index must be known, or the words would lie in memory.
#pragma unroll(bits == 3 ? codes : 4)
    for (int k = 0; k < codes; ++k) {
      const BundleCode code = bundle_code<bits>(S, width, bundle, lane * codes + k);
      const int t = code.token - tile.first;
      if (code.channel >= width || t < 0 || t >= tile.count) continue;
      const float4 own = params[affine_param_index(format, width, code.token, code.channel)];
      const typename C::Step step{own.x, own.y, own.z};
      add_code<bits>(part.codes, code.field, C::code_of(tile.row(code.token)[code.channel], step));
      add_code<bits>(part.mask, code.field, (1u << bits) - 1u);
    }
  }
  return part;
}

/// Stores those codes, and leaves the others of the words; `others_store`: other thread
/// blocks may store those at the same time.
template <class C, Side S>
__device__ __forceinline__ void store_part(int width, int bundle, const TokenTile& tile,
                                           const float4* params, bool others_store,
                                           std::uint32_t* words) {
  constexpr int bits = AffineFormat{C::affine_format}.bits;
  const PartOfBundle<bits> part = encode_bundle<C, S>(width, bundle, tile, params);
  const int first = bundle_words<bits>(S, width, bundle).first;
#pragma unroll
  for (int v = 0; v < words_per_bundle(bits); ++v) {
    std::uint32_t& word = words[first + v * 16];
    if (part.mask[v] == 0) continue;
    if (others_store) {
      atomicAnd(&word, ~part.mask[v]);
      atomicOr(&word, part.codes[v]);
    } else {
      word = (word & ~part.mask[v]) | part.codes[v];
    }
  }
}

/// Whether run `run` of a channel of values holds codes of the tile's tokens.
template <int Bits>
[[nodiscard]] __device__ __forceinline__ bool run_has_tokens(int width, int run,
                                                             const TokenTile& tile) {
  bool any = false;
#pragma unroll
  for (int k = 0; k < codes_per_lane(Bits); k += 4) {
    const int token = bundle_code<Bits>(Side::value, width, run * 16, k).token;
    any = any || (token < tile.first + tile.count && token + 4 > tile.first);
  }
  return any;
}

/// Computes and stores the codes of the tile's tokens; `others_store`: other thread blocks those of
/// the block's other tokens. By all threads, which do not meet at the end.
template <class C, Side S>
__device__ void encode_words(int width, const TokenTile& tile, const float* params,
                             bool others_store, std::byte* block) {
  constexpr int bits = AffineFormat{C::affine_format}.bits;
  auto* words = reinterpret_cast<std::uint32_t*>(block);
  const auto* groups = reinterpret_cast<const float4*>(params);
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  constexpr int whole = S == Side::key ? codes_per_lane(bits) : 16 * tiles_per_bundle(bits);
  if (tile.count == block_tokens && width % whole == 0) {
    return encode_whole_words<C, S>(width, tile, groups, words);
  }
  const int runs = runs_per_lane(bits, S, width);
  if constexpr (S == Side::key && tiles_per_bundle(bits) == 1) {
    // Codes of a token fill words of their own.
    for (int i = thread; i < tile.count * runs; i += threads) {
      const int token = tile.first + i % tile.count;
      const int word = (token / 16 * runs + i / tile.count) * 16 + token % 16;
      words[word] = encode_bundle<C, S>(width, word, tile, groups).codes[0];
    }
  } else if constexpr (S == Side::key) {
    for (int bundle = thread; bundle < code_bundles<bits>(S, width); bundle += threads) {
      store_part<C, S>(width, bundle, tile, groups, others_store, words);
    }
  } else {
    const int lanes = code_bundles<bits>(S, width) / runs;
    for (int run = 0; run < runs; ++run) {
      if (!run_has_tokens<bits>(width, run, tile)) continue;
      for (int lane = thread; lane < lanes; lane += threads) {
        store_part<C, S>(width, (lane / 16 * runs + run) * 16 + lane % 16, tile, groups,
                         others_store, words);
      }
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
