/// What the warps do with the exact tokens of a segment: blocks of the tail and sinks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/cuda/attend/exact_items.cuh"
#include "terse/cuda/attend/exact_tokens.cuh"
#include "terse/cuda/attend/sealed_blocks.cuh"
#include "terse/cuda/attend/tail_codes.cuh"
#include "terse/cuda/warp/prefetch.cuh"
#include "terse/policy/tail.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct ExactBlocks : SealedBlocks<Config> {
  using Base = SealedBlocks<Config>;
  using Base::Base;
  using Base::call;
  using Base::lane;
  using Base::norm;
  using Base::query_stride;
  using Base::shared;
  using Base::tiles;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using Base::width;
  using TailForm = typename Config::Ref::policy::tail_codec;
  static constexpr bool has_f16_tail = terse::has_f16_tail<typename Config::Ref::policy>;
  /// 16-bit tokens: the sinks, and tails of that form.
  using Exact = ExactTokens<width, tiles>;
  /// Tokens of tails.
  using TailReader = typename TailTokens<TailForm, width, tiles>::type;

  /// Bits of an exact item that vector `v` reads; of the sinks where `entry` is negative.
  [[nodiscard]] __device__ std::uint64_t exact_mask(const Segment& s, int v, int entry) const {
    if (v >= s.vectors) return 0;
    if (entry >= 0) return vector_mask(call, s, v, entry).exact;
    return sink_mask(call.r, s, [&](int e) { return vector_mask(call, s, v, e); });
  }

  [[nodiscard]] __device__ const std::byte* exact_block(const Segment& s, int item) const {
    return exact_copies(call.r, s, item);
  }
  [[nodiscard]] __device__ ExactItems exact_items(const Segment& s) const {
    return exact_items_of(s, call.exact_places);
  }

  /// Brings the exact blocks of a segment into the second-level cache.
  __device__ void prefetch_exact(const Segment& s) const {
    if (s.work.sequence < 0) return;
    const ExactItems items = exact_items(s);
    for (int item = items.first; item < items.end && item < s.work.exact_blocks; ++item) {
      const std::byte* block = exact_block(s, item);
      if (block == nullptr) continue;
      prefetch_together(block, static_cast<int>(call.r.shape.tail_tokens_bytes()));
    }
  }

  /// The 16 tokens of a quarter of an item in form F: Exact or TailReader.
  template <class F>
  [[nodiscard]] __device__ __forceinline__ typename F::Loads load_quarter(const std::byte* block,
                                                                          bool is_sinks,
                                                                          int quarter) const {
    const ClassShape& shape = call.r.shape;
    if constexpr (std::is_same_v<F, Exact>) {
      const std::byte* values = block + (is_sinks ? shape.sink_offset(Side::value, 0)
                                                  : shape.tail_offset(Side::value, 0));
      return F::load(block + quarter * 32, is_sinks ? sink_block_tokens : block_tokens,
                     values + quarter * 16 * width * 2);
    } else {
      return F::load(block, block + shape.tail_offset(Side::value, 0), quarter);
    }
  }

  /// Exact blocks and sinks whose places lie in the segment, a quarter a warp.
  __device__ void read_exact(const Segment& s, const ExactItems& items) {
    typename Exact::Sums sums;
    RunningSoftmax<tiles> softmax;
    softmax.start(s.vectors, lane.t);
    const int quarter = warp % 4;
#pragma unroll 1
    for (int item = items.first + warp / 4; item < items.end; item += warps / 4) {
      const bool is_sinks = item >= s.work.exact_blocks;
      if (is_sinks && quarter > 0) continue;
      if constexpr (has_f16_tail) {
        read_quarter<Exact>(s, item, quarter, sums, softmax);
      } else if (is_sinks) {
        read_quarter<Exact>(s, item, quarter, sums, softmax);
      } else {
        read_quarter<TailReader>(s, item, quarter, sums, softmax);
      }
    }
    this->template publish<Exact>(sums, softmax, false);
    __syncwarp();
  }

 private:
  /// Adds a quarter of an item in form F.
  template <class F>
  __device__ __forceinline__ void read_quarter(const Segment& s, int item, int quarter,
                                               typename Exact::Sums& sums,
                                               RunningSoftmax<tiles>& softmax) {
    const bool is_sinks = item >= s.work.exact_blocks;
    const int entry = is_sinks ? -1 : s.work.exact_first + item;
    const std::byte* block = exact_block(s, item);
    if (block == nullptr) return;
    const bool may_hold_prefix = Base::turns_prefix && entry < masked_entries(call.r);
    // Unsealed blocks hold their tokens in order, and the newest row sees all of them.
    const bool all_read_live = s.work.exact_in_order && !is_sinks && !may_hold_prefix &&
                               call.params.sliding_window_tokens == 0;
    const std::uint64_t live = all_read_live ? call.r.live_mask(s.work.sequence, s.unit, entry) : 0;
    const typename F::Loads loads = load_quarter<F>(block, is_sinks, quarter);
    std::uint64_t masks[tiles][2];
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        masks[n][i] = all_read_live ? live : exact_mask(s, 8 * n + 2 * lane.t + i, entry);
      }
    }
    float y[tiles][1][4];
    F::logits(loads, shared.queries[0], query_stride, norm, y);
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = y[n][0][i];
        if (call.params.logit_soft_cap > 0) x = this->capped(x, 8 * n + 2 * lane.t + (i & 1));
        x -= softmax.base[n][i & 1];
        const int token = 16 * quarter + F::token(i / 2, lane.g);
        if ((masks[n][i & 1] >> token & 1u) == 0) x = -INFINITY;
      }
    }
    std::uint32_t pairs[tiles][1][2], p[tiles][2];
    softmax.exponentials(y, pairs,
                         [&](int n, float c0, float c1) { Exact::scale(sums, n, c0, c1); });
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      p[n][0] = transpose(pairs[n][0][0]);
      p[n][1] = transpose(pairs[n][0][1]);
    }
    F::add(loads, p, sums);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
