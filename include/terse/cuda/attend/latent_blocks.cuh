/// Logits of blocks of latents: keys are rebuilt by the up-projection and turned to their
/// positions, block by block, in shared memory (Palu, arXiv 2407.21118, section 3.3).
///
/// Works for every codec, through its `decode`. A thread block has one KV head at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/core/rope.hpp"
#include "terse/cuda/append/tile_basis.cuh"
#include "terse/cuda/attend/exact_items.cuh"
#include "terse/cuda/attend/latent_memory.cuh"
#include "terse/cuda/attend/prefix_steps.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/softmax.cuh"
#include "terse/cuda/attend/tile_product.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/identity.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// In which form a block's latents lie.
enum class LatentForm { encoded, tail, sinks };

struct LatentBlock {
  LatentForm form;
  const std::byte* data;
  int entry;  ///< -1: sinks of whatever entry
};

template <class R>
struct LatentBlocks {
  using Ref = R;
  using Policy = typename Ref::policy;
  using K = typename Policy::key_codec;
  using V = typename Policy::value_codec;
  static constexpr bool turns_prefix = Policy::reindex == Reindex::cache_index;
  static constexpr int threads = latent_threads, warps = threads / 32;
  static constexpr float log2e = 1.4426950408889634f;

  __device__ LatentBlocks(const AttendCall<Ref>& of_call, const LatentMemory& of_memory,
                          std::byte* shared_bytes)
      : call(of_call),
        memory(of_memory),
        shared(*reinterpret_cast<LatentShared*>(shared_bytes)),
        queries(reinterpret_cast<float*>(shared_bytes + of_memory.queries)),
        scores(reinterpret_cast<float*>(shared_bytes + of_memory.scores)),
        sums(reinterpret_cast<float*>(shared_bytes + of_memory.sums)),
        angles(reinterpret_cast<double*>(shared_bytes + of_memory.angles)),
        tile(reinterpret_cast<float*>(shared_bytes + of_memory.tile)),
        keys(reinterpret_cast<float*>(shared_bytes + of_memory.keys)) {}

  const AttendCall<Ref>& call;
  const LatentMemory& memory;
  LatentShared& shared;
  float *queries, *scores, *sums;
  double* angles;
  float *tile, *keys;
  int thread = static_cast<int>(threadIdx.x);
  int warp = thread / 32, lane = thread % 32;

  [[nodiscard]] __device__ int row_of(const Segment& s, int v) const {
    return row_of_vector(call, s, v);
  }
  [[nodiscard]] __device__ int query_head(const Segment& s, int v) const {
    return head_of_vector(call, s, v, row_of(s, v));
  }

  /// Angles per position. By all threads.
  __device__ void load_angles() {
    for (int i = thread; i < call.r.rope.rotary_dim / 2; i += threads) {
      angles[i] = call.r.rope.inverse_frequency(i);
    }
  }

  /// Queries of a tile in units of log2, as tf32, and once more turned for the prefix. By all
  /// threads.
  __device__ void load_queries(const Segment& s) {
    const int width = call.r.shape.head_dim, stride = memory.query_stride;
#pragma unroll 1
    for (int v = warp; v < memory.vectors; v += warps) {
      float* plain = queries + v * stride;
      float* turned = plain + memory.vectors * stride;
      const std::int64_t row = s.row0 + row_of(s, v);
      const auto store = [&](float* to, int c, float x) {
        to[c] = __uint_as_float(to_tf32(x * call.scale));
      };
      for (int c = lane; c < stride; c += 32) {
        const bool inside = v < s.vectors && c < width;
        const float x = inside ? call.queries.get(row, query_head(s, v), c) : 0.0f;
        store(plain, c, x);
        if constexpr (turns_prefix) turned[c] = x;
      }
      if constexpr (turns_prefix) {
        __syncwarp();
        const int steps =
            v < s.vectors && s.work.sequence >= 0
                ? prefix_steps(call.r, s.work.sequence, s.unit, s.work.oldest + row_of(s, v))
                : 0;
        for (int i = lane; i < call.r.rope.rotary_dim / 2 && steps != 0; i += 32) {
          const double angle = steps * angles[i];
          turn_pair(call.r.rope, i, static_cast<float>(cos(angle)), static_cast<float>(sin(angle)),
                    turned);
        }
        __syncwarp();
        for (int c = lane; c < stride; c += 32) store(turned, c, turned[c]);
      }
    }
  }

  /// Sets masks and positions of a block; whether some vector reads it. By all threads, which meet.
  [[nodiscard]] __device__ bool select(const Segment& s, const LatentBlock& block) {
    __syncthreads();  // what the block before has left was read
    const int sequence = s.work.sequence;
    static_assert(most_latent_vectors == 32 && threads >= 32 + block_tokens);
    if (warp == 0) {
      const std::uint64_t own = lane < s.vectors ? mask_of(s, block, row_of(s, lane)) : 0;
      shared.masks[lane] = own;
      const auto low = __reduce_or_sync(~0u, static_cast<unsigned>(own));
      const auto high = __reduce_or_sync(~0u, static_cast<unsigned>(own >> 32));
      if (lane == 0) shared.any_mask = std::uint64_t{high} << 32 | low;
    } else if (const int t = thread - 32; t < block_tokens) {
      shared.positions[t] =
          block.form == LatentForm::sinks
              ? t
              : static_cast<int>(call.r.position(sequence, s.unit, block.entry, t));
    }
    __syncthreads();
    return shared.any_mask != 0;
  }

  /// Logits of the selected block (log2 units, -inf where a vector does not read) in `scores`. By
  /// all threads, which meet at the end.
  __device__ void score(const Segment& s, const LatentBlock& block) {
    rebuild_keys(s, block);
    turn_keys();
    __syncthreads();
    const std::int64_t prefix = terse::detail::prefix_end(call.r);
    multiply_queries(0);
    if (turns_prefix && shared.positions[0] < prefix) multiply_queries(1);  // positions never fall
    __syncthreads();
    for (int i = thread; i < memory.vectors * block_tokens; i += threads) {
      const int v = i / block_tokens, t = i % block_tokens;
      float& place = scores[v * LatentMemory::score_stride + t];
      float x = place;
      if constexpr (turns_prefix) {
        if (shared.positions[t] < prefix) {
          x = scores[(memory.vectors + v) * LatentMemory::score_stride + t];
        }
      }
      if (call.params.logit_soft_cap > 0) x = soft_capped(x, call.params.logit_soft_cap);
      place = (shared.masks[v] >> t & 1u) != 0 ? x : -INFINITY;
    }
    __syncthreads();
  }

  /// A latent's channel of a block, or 0 where no vector reads the token.
  template <class Codec>
  [[nodiscard]] __device__ __forceinline__ float latent(const LatentBlock& block,
                                                        const CodecContext& context,
                                                        const std::byte* stream, int token,
                                                        int channel) const {
    if ((shared.any_mask >> token & 1u) == 0 || channel >= context.width) return 0.0f;
    if (block.form == LatentForm::encoded) return Codec::decode(context, stream, token, channel);
    if (block.form == LatentForm::tail) {
      return Policy::tail_codec::decode(context, stream, token, channel);
    }
    return Identity::load(context, stream, sink_block_tokens, token, channel);
  }
  /// Where a stream of latents lies in a block.
  [[nodiscard]] __device__ const std::byte* stream_of(const LatentBlock& block, Side side,
                                                      int stream) const {
    const ClassShape& shape = call.r.shape;
    if (block.form == LatentForm::tail) return block.data + shape.tail_offset(side, stream);
    if (block.form == LatentForm::sinks) return block.data + shape.sink_offset(side, stream);
    return block.data + shape.code_offset(side, stream);
  }
  [[nodiscard]] __device__ int head_in_unit(const Segment& s) const {
    return s.kv_head - s.unit * call.r.shape.unit.heads_per_unit;
  }

 private:
  [[nodiscard]] __device__ std::uint64_t mask_of(const Segment& s, const LatentBlock& block,
                                                 int row) const {
    const auto of_entry = [&](int entry) {
      return terse::detail::row_mask(call.r, s.work.sequence, s.unit, entry,
                                     std::int64_t{s.work.oldest} + row, call.params);
    };
    if (block.form == LatentForm::encoded) return of_entry(block.entry).decoded;
    if (block.form == LatentForm::tail) return of_entry(block.entry).exact;
    if (block.entry >= 0) return of_entry(block.entry).sinks;
    return sink_mask(call.r, s, of_entry);
  }

  __device__ void rebuild_keys(const Segment& s, const LatentBlock& block) {
    const ClassShape& shape = call.r.shape;
    const int rank = shape.key_width, stream = head_in_unit(s) / shape.unit.key_heads_per_stream;
    const CodecContext context{Side::key, rank};
    const std::byte* latents = stream_of(block, Side::key, stream);
    const float* up =
        call.r.factors.key_up + std::int64_t{s.kv_head} * shape.head_dim * shape.key_width;
#pragma unroll 1
    for (int first = 0; first < block_tokens; first += memory.key_tokens) {
#pragma unroll 1
      for (int begin = 0; begin < rank; begin += memory.key_channels) {
        const int channels = min(memory.key_channels, round_up(rank - begin, 8));
        decode_keys(block, context, latents, first, begin, channels);
        __syncthreads();
        const TokenTile tokens{tile, memory.tile_stride, 0, memory.key_tokens};
        if constexpr (HasHadamard<K>) {
          hadamard_tile(tokens, min(rank - begin, channels),
                        hadamard_size(rank, K::hadamard_limit));
        } else {
          turn_tile<K, false>(context, tokens);
        }
        const auto factor = [&](int row, int i) {
          const bool inside = row < shape.head_dim && begin + i < rank;
          return to_tf32(inside ? up[row * rank + begin + i] : 0.0f);
        };
        const auto key = [&](int i, int token) {
          const float x = tile[token * memory.tile_stride + i];
          return HasBasis<K> ? to_tf32(x) : __float_as_uint(x);
        };
        const auto keep = [begin](int) { return begin == 0 ? 0.0f : 1.0f; };
        // Whole turns of 32 tokens where there are as many: each takes the factors once.
        if (memory.key_tokens >= 32) {
          multiply_tiles<4>(shape.head_dim, memory.key_tokens, channels, factor, key, keys + first,
                            LatentMemory::key_stride, keep);
        } else {
          multiply_tiles<1>(shape.head_dim, memory.key_tokens, channels, factor, key, keys + first,
                            LatentMemory::key_stride, keep);
        }
        __syncthreads();
      }
    }
  }

  /// Channels [begin, begin + channels) of the tokens from `first` on, as tf32 where no basis is to
  /// be left.
  __device__ void decode_keys(const LatentBlock& block, const CodecContext& context,
                              const std::byte* latents, int first, int begin, int channels) {
    // Eight tokens of four channels a warp: neighbours in keys that lie channel by channel.
#pragma unroll 1
    for (int quad = warp; quad < channels / 4; quad += warps) {
      const int c = 4 * quad + lane / 8;
      float x[block_tokens / 8];
#pragma unroll
      for (int i = 0; i < block_tokens / 8; ++i) {  // all loads in flight at once
        const int t = lane % 8 + 8 * i;
        if (t < memory.key_tokens) x[i] = latent<K>(block, context, latents, first + t, begin + c);
      }
#pragma unroll
      for (int i = 0; i < block_tokens / 8; ++i) {
        const int t = lane % 8 + 8 * i;
        if (t >= memory.key_tokens) break;
        tile[t * memory.tile_stride + c] = HasBasis<K> ? x[i] : __uint_as_float(to_tf32(x[i]));
      }
    }
  }

  /// Turns the rebuilt keys to their positions and rounds them to tf32.
  __device__ void turn_keys() {
    constexpr double turn = 6.283185307179586, inverse_turn = 0.15915494309189535;
    const RopeSpec& rope = call.r.rope;
    constexpr int stride = LatentMemory::key_stride;
    const int pairs = rope.rotary_dim / 2;
    const auto round = [](float x) { return __uint_as_float(to_tf32(x)); };
    for (int i = thread; i < pairs * block_tokens; i += threads) {
      const int pair = i / block_tokens, t = i % block_tokens;
      const double angle = shared.positions[t] * angles[pair];
      float sine, cosine;
      sincosf(static_cast<float>(angle - turn * rint(angle * inverse_turn)), &sine, &cosine);
      float& a = keys[rope.first_channel(pair) * stride + t];
      float& b = keys[rope.second_channel(pair) * stride + t];
      const float x = a, y = b;
      a = round(x * cosine - y * sine);
      b = round(x * sine + y * cosine);
    }
    const int rest = call.r.shape.head_dim - rope.rotary_dim;
    for (int i = thread; i < rest * block_tokens; i += threads) {
      float& x = keys[(rope.rotary_dim + i / block_tokens) * stride + i % block_tokens];
      x = round(x);
    }
  }

  __device__ void multiply_queries(int variant) {
    const int width = call.r.shape.head_dim, stride = memory.query_stride;
    const float* own = queries + variant * memory.vectors * stride;
    multiply_tiles<1>(
        memory.vectors, block_tokens, width,
        [&](int v, int c) { return __float_as_uint(own[v * stride + c]); },
        [&](int c, int t) {
          return c < width ? __float_as_uint(keys[c * LatentMemory::key_stride + t]) : 0u;
        },
        scores + variant * memory.vectors * LatentMemory::score_stride, LatentMemory::score_stride,
        [](int) { return 0.0f; });
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
