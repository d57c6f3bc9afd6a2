/// Encoding of tokens of one stream by one thread block, with the codec's own arithmetic: the same
/// bytes as on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/append/warp_group.cuh"
#include "terse/policy/codec.hpp"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/fp8.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Whether threads share the work; else the first one calls the codec.
template <class C>
inline constexpr bool encodes_together = SplitsEncoding<C> || PlainCodec<C>;

/// Floats between rows of a tile: threads that each read a token then meet in no bank. Codecs that
/// are called whole want dense rows.
template <class C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr int tile_stride(int width) noexcept {
  return encodes_together<C> ? width + 1 : width;
}

/// Floats of shared memory beside the tile, for a thread block of `warps`.
template <class C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr int scratch_floats(int width, int warps) noexcept {
  if constexpr (SplitsEncoding<C>) {
    constexpr AffineFormat format = C::affine_format;
    return 4 * affine_params(format, width) + warps * warp_scratch_floats<C>();
  }
  return 0;
}

/// Bytes of shared memory in which a thread block encodes `rows` tokens of any stream of a slot:
/// the tile, and what lies behind it.
template <class Ref>
[[nodiscard]] std::size_t encode_shared_bytes(const ClassShape& shape, int rows,
                                              int threads) noexcept {
  using K = typename Ref::policy::key_codec;
  using V = typename Ref::policy::value_codec;
  const auto floats = [&](int stride, int scratch) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride) +
           static_cast<std::size_t>(scratch);
  };
  const std::size_t keys =
      floats(tile_stride<K>(shape.key_width), scratch_floats<K>(shape.key_width, threads / 32));
  const std::size_t values =
      floats(tile_stride<V>(shape.value_width), scratch_floats<V>(shape.value_width, threads / 32));
  return (keys > values ? keys : values) * sizeof(float);
}

/// By all threads of the block, which do not meet at the end.
template <class C>
__device__ void encode_plain(const CodecContext& context, const TokenTile& tile, std::byte* block) {
  constexpr bool is_f16 = C::plain_format == PlainFormat::f16;
  constexpr int per_vector = is_f16 ? 8 : 16;
  if (tile.count == block_tokens && context.width % per_vector == 0) {
    return store_block<per_vector>(context, tile, block, [](const float* x, int along) {
      if constexpr (is_f16) {
        return pack_halves(x, along);
      } else {
        return pack_e4m3(x, along);
      }
    });
  }
  const bool is_key = context.side == Side::key;
  const int inner = is_key ? tile.count : context.width;
  const int total = tile.count * context.width;
  for (int i = static_cast<int>(threadIdx.x); i < total; i += static_cast<int>(blockDim.x)) {
    const int token = tile.first + (is_key ? i % inner : i / inner);
    const int channel = is_key ? i / inner : i % inner;
    const float v = tile.row(token)[channel];
    if constexpr (is_f16) {
      reinterpret_cast<F16*>(block)[Identity::place(context, block_tokens, token, channel)] =
          to_f16_saturating(v);
    } else {
      block[Fp8::place(context, token, channel)] = static_cast<std::byte>(to_e4m3(v));
    }
  }
}

template <class C>
__device__ __forceinline__ void put_step(float* params, int group, const typename C::Step& step) {
  reinterpret_cast<float4*>(params)[group] = {step.divisor, step.inverse, step.offset, 0.0f};
}

/// As encode_groups, for many groups per token of a codec that searches its step: a thread a
/// candidate, then a thread a group. By all threads.
template <class C>
__device__ void search_groups(const CodecContext& context, const TokenTile& tile, int group,
                              int groups, float* params, std::byte* block) {
  constexpr AffineFormat format = C::affine_format;
  const int width = context.width, threads = static_cast<int>(blockDim.x);
  const auto thread = static_cast<int>(threadIdx.x);
  constexpr int steps = C::num_steps;
  const int at_once = threads / steps;  // groups
  auto* errors = reinterpret_cast<double*>(params + 4 * affine_params(format, width));
  for (int begin = 0; begin < groups; begin += at_once) {
    const int own = groups - begin < at_once ? groups - begin : at_once;
    const auto place = [&](int i, int* token, int* channel, int* count) {
      *token = tile.first + i % tile.count;
      *channel = i / tile.count * group;
      *count = width - *channel < group ? width - *channel : group;
    };
    int token, channel, count;
    if (thread < own * steps) {
      place(begin + thread % own, &token, &channel, &count);
      const float* x = tile.row(token) + channel;
      const typename C::Step step =
          C::candidate_step(C::find_extremes(x, 1, count).peak(), thread / own);
      double sum = 0.0;
      if (step.divisor != 0.0f) {
#pragma unroll 4
        for (int i = 0; i < count; ++i) sum += C::squared_error(x[i], step);
      }
      errors[thread % own * steps + thread / own] = sum;
    }
    __syncthreads();
    if (thread < own) {
      place(begin + thread, &token, &channel, &count);
      const float* x = tile.row(token) + channel;
      typename C::Group g;
      g.step = C::candidate_step(C::find_extremes(x, 1, count).peak(),
                                 C::best_step(errors + thread * steps));
      g.scale = C::find_factor(x, 1, count, g.step);
      put_step<C>(params, affine_param_index(format, width, token, channel), g.step);
      C::store_group(context, token, channel, g, block);
    }
    __syncthreads();
  }
}

/// Finds, stores and leaves in `params [group, 4]` the parameters of the tile's groups. As many
/// lanes a group as there are threads for it. By all threads.
template <class C>
__device__ void encode_groups(const CodecContext& context, const TokenTile& tile, float* params,
                              std::byte* block) {
  constexpr AffineFormat format = C::affine_format;
  constexpr bool per_channel = format.granularity == Granularity::per_channel;
  const int width = context.width, threads = static_cast<int>(blockDim.x);
  const int group = per_channel || format.group > 0 ? format.group : width;
  const int groups =
      per_channel ? block_tokens / format.group * width : tile.count * affine_groups(format, width);
  int lanes = 1;
  if constexpr (searches_step<C> && !per_channel) {
    if (groups * 4 > threads) {
      return search_groups<C>(context, tile, group, groups, params, block);
    }
    lanes = 32;
  } else if constexpr (!per_channel) {
    // Fewer than eight lanes lose more by waiting for each other than they gain.
    if (groups * 8 <= threads) lanes = 8;
    while (lanes > 1 && lanes < 32 && groups * lanes * 2 <= threads) lanes *= 2;
  }
  const auto thread = static_cast<int>(threadIdx.x);
  for (int begin = 0; begin < groups; begin += threads / lanes) {
    if (begin + thread / 32 * 32 / lanes >= groups) break;  // nothing for this warp
    // Lanes without a group join in the shuffles of the others.
    const int own = begin + thread / lanes;
    const int i = own < groups ? own : groups - 1;
    const int token = per_channel ? i / width * group : tile.first + i % tile.count;
    const int channel = per_channel ? i % width : i / tile.count * group;
    const float* x = tile.row(token) + channel;
    typename C::Group g;
    if constexpr (per_channel) {
      const auto stride = static_cast<std::size_t>(tile.stride);
      g = C::find_group(C::find_extremes(x, stride, format.group), x, stride, format.group);
    } else {
      const int count = width - channel < group ? width - channel : group;
      const typename C::Extremes e = find_extremes_by_lanes<C>(x, count, lanes);
      if constexpr (searches_step<C>) {
        g = search_group_by_warp<C>(e, x, count, params + 4 * affine_params(format, width));
      } else {
        g = C::find_group(e, x, 1, count);
      }
    }
    if (own >= groups || thread % lanes != 0) continue;
    put_step<C>(params, affine_param_index(format, width, token, channel), g.step);
    C::store_group(context, token, channel, g, block);
  }
}

/// Codes of one stored word: of those tokens of the tile that it holds. Sets the bits of `mask`
/// that are theirs. `Whole`: all its places belong to the tile and the width.
template <class C, Side S, bool Whole>
[[nodiscard]] __device__ __forceinline__ std::uint32_t encode_word(int width, int word,
                                                                   const TokenTile& tile,
                                                                   const float4* params,
                                                                   std::uint32_t& mask) {
  constexpr AffineFormat format = C::affine_format;
  constexpr int bits = format.bits;
  // Places of a word are at fixed distances from its first.
  const WordCode first = word_code<bits>(S, width, word, 0);
  const float* x = tile.row(first.token) + first.channel;
  const float4* param = params + affine_param_index(format, width, first.token, first.channel);
  std::uint32_t codes = 0;
#pragma unroll
  for (int k = 0; k < codes_per_lane(bits); ++k) {
    constexpr int dense = 4096;  // any width gives the same distances
    const WordCode code = word_code<bits>(S, dense, 0, k);
    const int token = first.token + code.token, channel = first.channel + code.channel;
    if (!Whole && (channel >= width || token < tile.first || token >= tile.first + tile.count)) {
      continue;
    }
    // Where the parameters of a word's codes are neighbours, their distances are known too.
    float4 own;
    if constexpr (format.granularity == Granularity::per_channel) {
      own = S == Side::key ? param[code.channel]
                           : params[token / format.group * width + first.channel];
    } else {
      own = S == Side::value ? param[code.token]
                             : params[affine_param_index(format, width, token, channel)];
    }
    const typename C::Step step{own.x, own.y, own.z};
    codes |= C::code_of(x[code.token * tile.stride + code.channel], step) << code.shift;
    if (!Whole) mask |= ((1u << bits) - 1u) << code.shift;
  }
  return codes;
}

/// Computes and stores the codes of the tile's tokens, a thread a word.
template <class C, Side S>
__device__ void encode_words(int width, const TokenTile& tile, const float* params,
                             std::byte* block) {
  constexpr AffineFormat format = C::affine_format;
  constexpr int bits = format.bits;
  auto* words = reinterpret_cast<std::uint32_t*>(block);
  const auto* groups = reinterpret_cast<const float4*>(params);
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (tile.count == block_tokens && width % (S == Side::key ? codes_per_lane(bits) : 16) == 0) {
    std::uint32_t mask = 0;
    for (int word = thread; word < code_words<bits>(S, width); word += threads) {
      words[word] = encode_word<C, S, true>(width, word, tile, groups, mask);
    }
    return;
  }
  // Keys of a token fill words of their own.
  const int per_token = vectors_per_tile(bits, S, width);
  const int total = S == Side::key ? tile.count * per_token : code_words<bits>(S, width);
  for (int i = thread; i < total; i += threads) {
    int word = i;
    if constexpr (S == Side::key) {
      const int token = tile.first + i % tile.count;
      word = (token / 16 * per_token + i / tile.count) * 16 + token % 16;
    }
    std::uint32_t mask = 0;
    const std::uint32_t codes = encode_word<C, S, false>(width, word, tile, groups, mask);
    if (S == Side::key) {
      words[word] = codes;
    } else if (mask != 0) {
      words[word] = (words[word] & ~mask) | codes;
    }
  }
}

/// Encodes the tile's tokens, which are in the codec's basis; `Sealing`: all 64 of a block at once.
/// By all threads of the block, which do not meet at the end.
template <Codec C, bool Sealing>
__device__ void encode_tokens(const CodecContext& context, const TokenTile& tile, float* scratch,
                              std::byte* block) {
  if constexpr (SplitsEncoding<C>) {
    encode_groups<C>(context, tile, scratch, block);
    __syncthreads();
    if (context.side == Side::key) {
      encode_words<C, Side::key>(context.width, tile, scratch, block);
    } else {
      encode_words<C, Side::value>(context.width, tile, scratch, block);
    }
  } else if constexpr (PlainCodec<C>) {
    encode_plain<C>(context, tile, block);
  } else if (threadIdx.x == 0) {
    if constexpr (Sealing) {
      terse::encode_block<C>(context, tile.x, block);
    } else if constexpr (CanEncodeToken<C>) {
      for (int t = tile.first; t < tile.first + tile.count; ++t) {
        C::encode_token(context, tile.row(t), t, block);
      }
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
