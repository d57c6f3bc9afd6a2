/// Encoding of tokens of one stream by one thread block, with the codec's own arithmetic: the same
/// bytes as on the host.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/cuda/append/affine_words.cuh"
#include "terse/cuda/append/divisor.cuh"
#include "terse/cuda/append/encode_levels.cuh"
#include "terse/cuda/append/follow_path.cuh"
#include "terse/cuda/append/group_extremes.cuh"
#include "terse/cuda/append/search_step.cuh"
#include "terse/cuda/append/shape_errors.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/policy/codec.hpp"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/level_codes.hpp"
#include "terse/quant/planes.hpp"
#include "terse/quant/shaped_trellis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Groups and codes can be computed apart, so that threads share both.
template <class C>
concept SplitsEncoding = AffineCodec<C> &&
    requires(const float* x, float v, const typename C::Extremes& extremes,
             const typename C::Step& step) {
  { C::find_extremes(x, std::size_t{1}, 1) } -> std::same_as<typename C::Extremes>;
  { C::find_group(extremes, x, std::size_t{1}, 1) } -> std::same_as<typename C::Group>;
  { C::code_of(v, step) } -> std::same_as<unsigned>;
};

/// A warp takes a vector, whose channels it rounds one after another.
template <class C>
concept RoundsByWarps = ShapesErrors<C> || TrellisCodec<C>;

/// Codecs that make a tile's numbers their codes, which encode_words packs.
template <class C>
concept FindsCodesFirst = (LevelCodec<C> && !AffineCodec<C>) || RoundsByWarps<C>;

/// The format of such codes.
template <FindsCodesFirst C>
[[nodiscard]] consteval AffineFormat find_code_format() {
  if constexpr (TrellisCodec<C>) {
    return {.bits = C::trellis_spec.bits};
  } else if constexpr (LevelCodec<C>) {
    return {.bits = C::bits};
  } else {
    return C::affine_format;
  }
}
template <FindsCodesFirst C>
inline constexpr AffineFormat code_format = find_code_format<C>();

/// Whether threads share the work; else some call the codec.
template <class C>
inline constexpr bool encodes_together =
    SplitsEncoding<C> || FindsCodesFirst<C> || PlainCodec<C> || PlaneCodec<C>;

/// Floats between rows of a tile: threads that each read a token then meet in no bank. Codecs that
/// are called for a whole block want dense rows.
template <class C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr int tile_stride(int width) noexcept {
  return encodes_together<C> || !CanEncodeBlock<C> ? width + 1 : width;
}

/// Shared memory beside the tile.
struct EncodeScratch {
  float* floats;  ///< `[scratch_floats<C>(width, stages)]`, aligned to 16 bytes
  float* tail;    ///< the same of the tail's codec, which `floats` is in use beside
  bool stages;    ///< with room for the feedback that errors are shaped by
};

template <class C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr int scratch_floats(int width, bool stages) noexcept {
  if constexpr (SplitsEncoding<C>) {
    constexpr AffineFormat format = C::affine_format;
    return 4 * affine_params(format, width);
  } else if constexpr (RoundsByWarps<C>) {
    return shaping_floats(width, stages);
  } else if constexpr (FindsCodesFirst<C>) {
    constexpr AffineFormat format = code_format<C>;
    return 4 * affine_params(format, width);  // encode_words may look at them
  }
  return 0;
}

/// Bytes of shared memory in which a thread block encodes `rows` tokens of any stream of a slot:
/// the tile, and EncodeScratch behind it.
template <class Ref>
[[nodiscard]] std::size_t encode_shared_bytes(const ClassShape& shape, int rows,
                                              bool stages) noexcept {
  using K = typename Ref::policy::key_codec;
  using V = typename Ref::policy::value_codec;
  using T = typename Ref::policy::tail_codec;
  const auto floats = [&](int width, int stride, int scratch) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride) +
           static_cast<std::size_t>(scratch + scratch_floats<T>(width, false));
  };
  const int key_width = shape.key_width, value_width = shape.value_width;
  const std::size_t keys =
      floats(key_width, tile_stride<K>(key_width), scratch_floats<K>(key_width, stages));
  const std::size_t values =
      floats(value_width, tile_stride<V>(value_width), scratch_floats<V>(value_width, stages));
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
        return pack_halves<!HasBasis<C>>(x, along);
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
  int lane_bits = 0;
  if constexpr (searches_step<C> && !per_channel) {
    lane_bits = groups * 32 <= threads ? 5 : 3;
  } else if constexpr (!per_channel) {
    while (lane_bits < 5 && groups << (lane_bits + 1) <= threads) ++lane_bits;
  }
  const int lanes = 1 << lane_bits;
  const Divisor by_width = Divisor::of(width), by_count = Divisor::of(tile.count);
  const auto thread = static_cast<int>(threadIdx.x);
  for (int begin = 0; begin < groups; begin += threads >> lane_bits) {
    if (begin + (thread / 32 * 32 >> lane_bits) >= groups) break;  // nothing for this warp
    // Lanes without a group join in the shuffles of the others.
    const int own = begin + (thread >> lane_bits);
    const int i = own < groups ? own : groups - 1;
    const int row = per_channel ? by_width.quotient(i) : by_count.quotient(i);
    const int token = per_channel ? row * group : tile.first + i - row * tile.count;
    const int channel = per_channel ? i - row * width : row * group;
    const float* x = tile.row(token) + channel;
    typename C::Group g;
    if constexpr (per_channel) {
      const auto stride = static_cast<std::size_t>(tile.stride);
      g = C::find_group(C::find_extremes(x, stride, format.group), x, stride, format.group);
    } else {
      const int count = width - channel < group ? width - channel : group;
      const typename C::Extremes e = find_extremes_by_lanes<C>(x, count, lanes);
      if constexpr (searches_step<C>) {
        g = lanes == 32 ? search_group_by_lanes<C, 32>(e, x, count)
                        : search_group_by_lanes<C, 8>(e, x, count);
      } else {
        g = C::find_group(e, x, 1, count);
      }
    }
    if (own >= groups || (thread & (lanes - 1)) != 0) continue;
    put_step<C>(params, affine_param_index(format, width, token, channel), g.step);
    C::store_group(context, token, channel, g, block);
  }
}

/// By all threads, which meet before and do not meet at the end.
template <class C>
__device__ __forceinline__ void encode_words_of_side(const CodecContext& context,
                                                     const TokenTile& tile, const float* params,
                                                     bool others_store, std::byte* block) {
  __syncthreads();
  if (context.side == Side::key) {
    encode_words<C, Side::key>(context.width, tile, params, others_store, block);
  } else {
    encode_words<C, Side::value>(context.width, tile, params, others_store, block);
  }
}

/// A thread a channel of keys, or a token's value. By all threads of the block, which do not meet
/// at the end.
template <PlaneCodec C>
__device__ void encode_runs(const CodecContext& context, const TokenTile& tile, std::byte* block) {
  const bool by_channel = C::granularity == Granularity::per_channel;
  const int runs = by_channel ? context.width : tile.count;
  for (int i = static_cast<int>(threadIdx.x); i < runs; i += static_cast<int>(blockDim.x)) {
    if (by_channel) {
      C::encode_run(context, tile.row(0) + i, static_cast<std::size_t>(tile.stride), i, block);
    } else {
      C::encode_run(context, tile.row(tile.first + i), 1, tile.first + i, block);
    }
  }
}

/// Tokens of a run that a codec lets threads encode at once; 1 without its word.
template <class C, Side S>
[[nodiscard]] consteval int find_encoded_at_once() {
  if constexpr (EncodesTokensAtOnce<C>) return C::tokens_at_once(S);
  return 1;
}
template <class C, Side S>
inline constexpr int encoded_at_once = find_encoded_at_once<C, S>();

/// As many tokens at once as the codec allows, a thread each. By all threads of the block, which do
/// not meet at the end.
template <CanEncodeToken C>
__device__ void encode_token_by_token(const CodecContext& context, const TokenTile& tile,
                                      std::byte* block) {
  constexpr auto is_run = [](int n) { return n >= 1 && n <= block_tokens && (n & (n - 1)) == 0; };
  static_assert(is_run(encoded_at_once<C, Side::key>) && is_run(encoded_at_once<C, Side::value>),
                "terse: a codec's tokens_at_once must be a power of two from 1 to 64.");
  const int at_once =
      context.side == Side::key ? encoded_at_once<C, Side::key> : encoded_at_once<C, Side::value>;
  const auto thread = static_cast<int>(threadIdx.x);
  const int end = tile.first + tile.count;
  for (int run = tile.first & -at_once; run < end; run += at_once) {
    const int token = run + thread;
    if (thread < at_once && token >= tile.first && token < end) {
      C::encode_token(context, tile.row(token), token, block);
    }
    if (run + at_once < end) __syncthreads();  // the next ones write to the same bytes
  }
}

/// Starts to bring what encode_tokens of the stream will read to where it reads it; `scratch` the
/// same. By all threads.
template <Codec C>
__device__ __forceinline__ void begin_encoding(const CodecContext& context,
                                               const EncodeScratch& scratch) {
  if constexpr (RoundsByWarps<C>) begin_rounding(context, scratch.floats, scratch.stages);
}

/// Encodes the tile's tokens, which are in the codec's basis and may be written over; `seals`:
/// those of a whole block, all 64 or, by codecs that RoundsByWarps names, a piece of them, while
/// other thread blocks have the others. After begin_encoding; by all threads of the block, which do
/// not meet at the end.
template <Codec C>
__device__ void encode_tokens(const CodecContext& context, const TokenTile& tile, bool seals,
                              const EncodeScratch& scratch, std::byte* block) {
  if constexpr (SplitsEncoding<C>) {
    encode_groups<C>(context, tile, scratch.floats, block);
    encode_words_of_side<C>(context, tile, scratch.floats, false, block);
  } else if constexpr (FindsCodesFirst<C>) {
    const bool others_encode = seals && tile.count < block_tokens;
    if constexpr (TrellisCodec<C>) {
      follow_paths<C>(context, tile, scratch.floats, scratch.stages, block);
    } else if constexpr (LevelCodec<C>) {
      find_level_codes<C>(context, tile, block);
    } else {
      round_tokens<C>(context, tile, scratch.floats, scratch.stages, block);
    }
    encode_words_of_side<RoundedCodes<code_format<C>>>(context, tile, scratch.floats, others_encode,
                                                       block);
  } else if constexpr (PlainCodec<C>) {
    encode_plain<C>(context, tile, block);
  } else if constexpr (PlaneCodec<C>) {
    encode_runs<C>(context, tile, block);
  } else if constexpr (CanEncodeBlock<C>) {
    if (seals) {
      if (threadIdx.x == 0) C::encode_block(context, tile.x, block);
    } else if constexpr (CanEncodeToken<C>) {
      encode_token_by_token<C>(context, tile, block);
    }
  } else {
    encode_token_by_token<C>(context, tile, block);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
