/// Tokens of an evictor's prefix, to which distances are those inside the cache
/// (Reindex::cache_index): they meet queries that are turned by another number of steps. They are
/// few, so they are read number by number, in fp32, a warp a query vector.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/rope.hpp"
#include "terse/cuda/attend/exact_blocks.cuh"
#include "terse/cuda/attend/prefix_steps.cuh"
#include "terse/cuda/attend/softmax.cuh"
#include "terse/cuda/warp/basis.cuh"
#include "terse/policy/identity.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct PrefixTokens : ExactBlocks<Config> {
  using Base = ExactBlocks<Config>;
  using Base::Base;
  using Base::call;
  using Base::head_of;
  using Base::lane;
  using Base::lane_channels;
  using Base::row_of;
  using Base::shared;
  using Base::tiles;
  using Base::warp;
  using Base::warps;
  using Base::width;
  using typename Base::Policy;
  using K = typename Policy::key_codec;
  using V = typename Policy::value_codec;

  /// Adds the prefix to what the warps have published, in the thread block that has a unit's first
  /// place.
  __device__ void read_prefix(const Segment& s) {
    if (s.begin != 0 || terse::detail::prefix_end(call.r) == 0) return;
    __syncwarp();
    int row = -1, steps = 0;
#pragma unroll 1
    for (int v = warp; v < s.vectors; v += warps) {
      if (row_of(s, v) != row) {
        row = row_of(s, v);
        steps = prefix_steps(call.r, s.work.sequence, s.unit, s.work.oldest + row);
      }
      add_prefix(s, v, steps);
    }
  }

 private:
  /// One vector's softmax over the prefix; lane l has channels l, l + 32, ...
  struct Sums {
    float query[lane_channels];
    float values[lane_channels] = {};
    float base = -INFINITY, denominator = 0.0f;
    float offset = 0.0f;  ///< of logits, so that they lack what those of other tokens do
  };

  __device__ void add_prefix(const Segment& s, int v, int steps) {
    const int sequence = s.work.sequence;
    const std::int64_t position = std::int64_t{s.work.oldest} + row_of(s, v);
    const std::int64_t end = terse::detail::prefix_end(call.r);
    Sums sums;
    load_query(s, v, steps, sums);
    const int count = call.r.entry_count(sequence, s.list);
#pragma unroll 1
    for (int e = 0; e < count && call.r.first_position(sequence, s.unit, e) < end; ++e) {
      const terse::detail::RowMask mask =
          terse::detail::row_mask(call.r, sequence, s.unit, e, position, call.params);
      const std::uint64_t prefix = call.r.before(sequence, s.unit, e, end);
      if ((mask.decoded & prefix) != 0) {
        const std::int32_t page = call.r.page(sequence, s.list, e);
        if (page >= 0 && page < call.r.shape.num_pages) {
          add_encoded(s, sums, mask.decoded & prefix, call.r.block(sequence, s.unit, e));
        }
      }
      if ((mask.exact & prefix) != 0) {
        const std::byte* block =
            call.r.tail_block(sequence, s.unit, call.r.first_position(sequence, s.unit, e));
        add_tail(sums, mask.exact & prefix, block);
      }
      const std::uint64_t sinks =
          end < sink_block_tokens ? mask.sinks & ((1ull << end) - 1) : mask.sinks;
      if (sinks != 0) {
        add_sinks(sums, sinks, call.r.sink_block(sequence, s.unit));
      }
    }
    merge(sums, v);
  }

  /// The query of a vector, turned by `steps`, in units of log2 and in the keys' basis.
  __device__ void load_query(const Segment& s, int v, int steps, Sums& sums) const {
    float(&x)[lane_channels] = sums.query;
    const int row = row_of(s, v);
    const int head = head_of(s, v, row);
    // The warp's part of what read_sealed has used.
    auto* scratch = reinterpret_cast<float*>(shared.exchange + warp * tiles * 1024);
    static_assert(tiles * 1024 >= width * static_cast<int>(sizeof(float)));
    for (int c = lane.index; c < width; c += 32) {
      scratch[c] = call.queries.get(std::int64_t{s.row0} + row, head, c);
    }
    __syncwarp();
    for (int i = lane.index; i < call.r.rope.rotary_dim / 2 && steps != 0; i += 32) {
      const double angle = steps * call.r.rope.inverse_frequency(i);
      turn_pair(call.r.rope, i, static_cast<float>(cos(angle)), static_cast<float>(sin(angle)),
                scratch);
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < lane_channels; ++k) {
      const int c = lane.index + 32 * k;
      x[k] = c < width ? scratch[c] * call.scale : 0.0f;
    }
    __syncwarp();
    const CodecContext context = this->context(Side::key, s.unit);
    if constexpr (Base::adds_offsets) {
      sums.offset =
          query_offset_warp<K, width>(context, x, scratch, lane.index) - this->lse_offset(v);
    }
    turn_query_warp<K, width>(context, x, scratch, lane.index);
  }

  /// Adds tokens that `key(t, c)` and `value(t, c)` read.
  template <class Key, class Value>
  __device__ void add_tokens(Sums& sums, std::uint64_t bits, Key&& key, Value&& value) const {
#pragma unroll 1
    for (; bits != 0; bits &= bits - 1) {
      const int t = lowest_one(bits);
      add_token(
          sums, [&](int c) { return key(t, c); }, [&](int c) { return value(t, c); });
    }
  }
  __device__ void add_encoded(const Segment& s, Sums& sums, std::uint64_t bits,
                              const std::byte* block) const {
    const CodecContext keys = this->context(Side::key, s.unit);
    const CodecContext values = this->context(Side::value, s.unit);
    const std::byte* key_block = block + call.r.shape.key_offset(0);
    const std::byte* value_block = block + call.r.shape.value_offset(0);
    add_tokens(
        sums, bits, [&](int t, int c) { return K::decode(keys, key_block, t, c); },
        [&](int t, int c) { return V::decode(values, value_block, t, c); });
  }
  __device__ void add_tail(Sums& sums, std::uint64_t bits, const std::byte* block) const {
    using T = typename Config::Ref::policy::tail_codec;
    const CodecContext keys{Side::key, width}, values{Side::value, width};
    const std::byte* value_block = block + call.r.shape.tail_offset(Side::value, 0);
    add_tokens(
        sums, bits, [&](int t, int c) { return T::decode(keys, block, t, c); },
        [&](int t, int c) { return T::decode(values, value_block, t, c); });
  }
  __device__ void add_sinks(Sums& sums, std::uint64_t bits, const std::byte* block) const {
    constexpr int room = sink_block_tokens;
    const CodecContext keys{Side::key, width}, values{Side::value, width};
    const std::byte* value_block = block + call.r.shape.sink_offset(Side::value, 0);
    add_tokens(
        sums, bits, [&](int t, int c) { return Identity::load(keys, block, room, t, c); },
        [&](int t, int c) { return Identity::load(values, value_block, room, t, c); });
  }

  template <class Key, class Value>
  __device__ __forceinline__ void add_token(Sums& sums, Key&& key, Value&& value) const {
    float own[lane_channels], logit = 0.0f;
#pragma unroll
    for (int k = 0; k < lane_channels; ++k) {
      const int c = lane.index + 32 * k;
      if (c < width) logit = __fmaf_rn(sums.query[k], key(c), logit);
      own[k] = c < width ? value(c) : 0.0f;
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2) logit += __shfl_xor_sync(~0u, logit, d);
    if constexpr (Base::adds_offsets) logit += sums.offset;
    if (call.params.logit_soft_cap > 0) logit = soft_capped(logit, call.params.logit_soft_cap);
    const float base = fmaxf(sums.base, logit);
    const float old_factor = exp2_approximate(sums.base - base);
    const float weight = exp2_approximate(logit - base);
    sums.base = base;
    sums.denominator = __fmaf_rn(sums.denominator, old_factor, weight);
#pragma unroll
    for (int k = 0; k < lane_channels; ++k) {
      sums.values[k] = __fmaf_rn(sums.values[k], old_factor, weight * own[k]);
    }
  }

  /// Adds a vector's sums to those that the warp has published.
  __device__ void merge(const Sums& sums, int v) {
    if (sums.denominator == 0.0f) return;
    const float2 old = shared.states[warp][v];
    const float base = old.y == 0.0f ? sums.base : fmaxf(old.x, sums.base);
    const float old_factor = old.y == 0.0f ? 0.0f : exp2_approximate(old.x - base);
    const float factor = exp2_approximate(sums.base - base);
    __syncwarp();
    if (lane.index == 0) {
      shared.states[warp][v] = {base, __fmaf_rn(old.y, old_factor, sums.denominator * factor)};
    }
#pragma unroll
    for (int k = 0; k < lane_channels; ++k) {
      const int c = lane.index + 32 * k;
      if (c >= width) continue;
      float& place = shared.sums[warp][v][c];
      place = __fmaf_rn(place, old_factor, sums.values[k] * factor);
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
