/// Writing one stream of a block from tokens of other blocks: the bytes that the host's pack_stream
/// writes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/cuda/append/encode.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/compact/gathered_tokens.cuh"
#include "terse/policy/codec.hpp"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"
#include "terse/quant/fp8.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// By all threads, which do not meet at the end; whole vectors of 16 bytes.
static __device__ void clear_together(std::byte* to, std::size_t bytes) {
  for (std::size_t i = threadIdx.x; i < bytes / sizeof(uint4); i += blockDim.x) {
    reinterpret_cast<uint4*>(to)[i] = uint4{};
  }
}
static __device__ void copy_together(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t i = threadIdx.x; i < bytes / sizeof(uint4); i += blockDim.x) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
}

/// Codes by bundles of stored words, a thread a bundle; parameters by numbers. By all threads.
template <class C, Side S>
__device__ void copy_affine(const CodecContext& context, std::size_t offset,
                            const GatheredTokens& tokens, std::byte* to) {
  constexpr AffineFormat format = C::affine_format;
  constexpr int bits = format.bits;
  const int width = context.width;
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  auto* words = reinterpret_cast<std::uint32_t*>(to);
#pragma unroll 4
  for (int bundle = thread; bundle < code_bundles<bits>(S, width); bundle += threads) {
    std::uint32_t codes[words_per_bundle(bits)] = {};
    if constexpr (S == Side::key && tiles_per_bundle(bits) == 1) {
      // All codes of a word are those of one token, and so they are where it comes from.
      const int vector = bundle / 16, runs = runs_per_lane(bits, S, width);
      const int place = vector / runs * 16 + bundle % 16;
      if (tokens.is_used(place)) {
        const int token = tokens.block_token[place];
        const int source = (token / 16 * runs + vector % runs) * 16 + token % 16;
        codes[0] = reinterpret_cast<const std::uint32_t*>(tokens.block[place] + offset)[source];
      }
    } else {
#pragma unroll
      for (int k = 0; k < codes_per_bundle(bits); ++k) {
        const BundleCode code = bundle_code<bits>(S, width, bundle, k);
        if (code.channel >= width || !tokens.is_used(code.token)) continue;
        add_code<bits>(codes, code.field,
                       load_code<bits>(tokens.block[code.token] + offset,
                                       code_place<bits>(S, width, tokens.block_token[code.token],
                                                        code.channel)));
      }
    }
    const BundleWords own = bundle_words<bits>(S, width, bundle);
#pragma unroll
    for (int v = 0; v < words_per_bundle(bits); ++v) {
      if (v < own.count) words[own.first + v * 16] = codes[v];
    }
  }
  const Record record = C::record(S, width);
  const int params = affine_groups(format, width) * block_tokens;
  for (int section = 1; section < record.num_sections; ++section) {
    const std::size_t at = record.sections[section].offset_bytes;
    auto* numbers = reinterpret_cast<F16*>(to + at);
    for (int i = thread; i < params; i += threads) {
      const int place = i % block_tokens;
      if (!tokens.is_used(place)) continue;
      numbers[i] = reinterpret_cast<const F16*>(tokens.block[place] + offset +
                                                at)[i - place + tokens.block_token[place]];
    }
  }
}

/// Calls `f(place, channel)` for all elements of a stream, neighbouring lanes with neighbours as
/// they are stored: keys by token, values by channel. By all threads.
template <class F>
__device__ __forceinline__ void for_each_element(const CodecContext& context, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  const bool is_key = context.side == Side::key;
  const int rows = is_key ? context.width : block_tokens;
  const int columns = is_key ? block_tokens : context.width;
  for (int column = lane; column < columns; column += 32) {
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += warps) {
      is_key ? f(column, row) : f(row, column);
    }
  }
}

/// Element by element. By all threads.
template <class C>
__device__ void copy_plain(const CodecContext& context, std::size_t offset,
                           const GatheredTokens& tokens, std::byte* to) {
  for_each_element(context, [&](int place, int channel) {
    if (!tokens.is_used(place)) return;
    const std::byte* from = tokens.block[place] + offset;
    const int token = tokens.block_token[place];
    if constexpr (C::plain_format == PlainFormat::f16) {
      reinterpret_cast<F16*>(to)[Identity::place(context, block_tokens, place, channel)] =
          reinterpret_cast<const F16*>(
              from)[Identity::place(context, block_tokens, token, channel)];
    } else {
      to[Fp8::place(context, place, channel)] = from[Fp8::place(context, token, channel)];
    }
  });
}

/// Moves tokens without decoding them into the stream `to`, which some of them may come from:
/// `staged [record bytes]` in shared memory holds it meanwhile. By all threads, which meet at the
/// end.
template <class C>
__device__ void copy_stream(const CodecContext& context, std::size_t offset,
                            const GatheredTokens& tokens, std::byte* staged, std::byte* to) {
  const std::size_t bytes = C::record(context.side, context.width).bytes;
  clear_together(staged, bytes);
  __syncthreads();
  if constexpr (AffineCodec<C>) {
    if (context.side == Side::key) {
      copy_affine<C, Side::key>(context, offset, tokens, staged);
    } else {
      copy_affine<C, Side::value>(context, offset, tokens, staged);
    }
  } else if constexpr (PlainCodec<C>) {
    copy_plain<C>(context, offset, tokens, staged);
  } else if (threadIdx.x == 0) {  // tokens may share bytes
    for (int place = 0; place < block_tokens; ++place) {
      if (!tokens.is_used(place)) continue;
      C::copy_token(context, tokens.block[place] + offset, tokens.block_token[place], staged,
                    place);
    }
  }
  __syncthreads();
  copy_together(to, staged, bytes);
  __syncthreads();
}

/// Encodes tokens again. `shared`: as encoding a whole block needs. By all threads, which meet at
/// the end.
template <class C>
__device__ void reencode_stream(const CodecContext& context, std::size_t offset,
                                const GatheredTokens& tokens, float* shared, std::byte* to) {
  const TokenTile tile{shared, tile_stride<C>(context.width), 0, block_tokens};
  const EncodeScratch scratch{shared + block_tokens * tile.stride, nullptr, false};
  begin_encoding<C>(context, scratch);
  for_each_element(context, [&](int place, int channel) {
    tile.row(place)[channel] =
        C::decode(context, tokens.block[place] + offset, tokens.block_token[place], channel);
  });
  __syncthreads();
  clear_together(to, C::record(context.side, context.width).bytes);
  __syncthreads();
  encode_tokens<C>(context, tile, true, scratch, to);
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
