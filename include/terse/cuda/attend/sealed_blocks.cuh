/// What a warp does with the decoded entries of a segment: logits, softmax, values, block after
/// block.
#pragma once

#include <cmath>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/query_tile.cuh"
#include "terse/cuda/attend/softmax.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct SealedBlocks : QueryTile<Config> {
  using Base = QueryTile<Config>;
  using Base::Base;
  using Base::call;
  using Base::lane;
  using Base::mask_of;
  using Base::norm;
  using Base::query_stride;
  using Base::row_of;
  using Base::shared;
  using Base::tiles;
  using Base::vectors;
  using Base::warp;
  using Base::width;
  using typename Base::Keys;
  using typename Base::Order;
  using typename Base::Source;
  using typename Base::Values;

  /// Masks logits of a block for the lane's columns.
  __device__ void mask_block(const Segment& s, int entry, float (&x)[tiles][4][4]) const {
    int row_of_last = -1;
    std::uint64_t mask = 0;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int v = 8 * n + 2 * lane.t + i;
        const int row = row_of(s, v);
        if (row != row_of_last) mask = mask_of(s, v, entry).decoded;
        row_of_last = v < s.vectors ? row : -1;
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if ((mask >> Order::token(m, half, lane.g) & 1u) == 0)
              x[n][m][2 * half + i] = -INFINITY;
          }
        }
      }
    }
  }

  /// Exponentials through shared memory into B operands.
  __device__ __forceinline__ void exchange(float (&s)[tiles][4][4], const std::uint32_t (&read)[2],
                                           std::uint32_t (&p)[tiles][2][4]) const {
    const std::uint32_t base =
        shared_address(shared.exchange) + static_cast<unsigned>(warp * tiles) * 1024u;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float a = exp2_approximate(s[n][m][2 * half]);
          const float b = exp2_approximate(s[n][m][2 * half + 1]);
          store_shared_4(base + static_cast<unsigned>(n) * 1024u +
                             static_cast<unsigned>(Order::row(m, half, lane.g)) * 16u +
                             static_cast<unsigned>(lane.t) * 4u,
                         pack_half2(a, b));
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        load_transposed(p[n][pair], read[pair] + static_cast<unsigned>(n) * 1024u);
      }
    }
    __syncwarp();
  }

  /// Shared addresses from which the lane's row of each pair of steps is read.
  __device__ __forceinline__ void exchange_rows(std::uint32_t (&read)[2]) const {
    const int matrix = lane.index / 8, r = lane.index % 8;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int step = 2 * pair + (Values::steps_interleaved ? matrix & 1 : matrix >> 1);
      const int half = Values::steps_interleaved ? matrix >> 1 : matrix & 1;
      const int token = 16 * step + 4 * (r / 2) + 2 * half + r % 2;
      read[pair] = shared_address(shared.exchange) + static_cast<unsigned>(warp * tiles) * 1024u +
                   static_cast<unsigned>(Order::row_of_token(token)) * 16u;
    }
  }

  /// Writes one warp's sums to shared memory, or adds them to those it has written (`combine`).
  template <class Reader>
  __device__ __forceinline__ void publish(const typename Reader::Sums& sums,
                                          const RunningSoftmax<tiles>& softmax, bool combine) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      float out[Reader::row_tiles][4], denominator[2];
      Reader::finish(sums, n, out, denominator);
      float old_factor[2] = {}, factor[2] = {1.0f, 1.0f};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float2 state = {softmax.base[n][i], denominator[i]};
        if (combine) {
          const float2 old = shared.states[warp][8 * n + 2 * lane.t + i];
          if (old.y != 0.0f) {
            const float high = state.y == 0.0f ? old.x : fmaxf(old.x, state.x);
            old_factor[i] = exp2_approximate(old.x - high);
            factor[i] = state.y == 0.0f ? 0.0f : exp2_approximate(state.x - high);
            state = {high, old.y * old_factor[i] + state.y * factor[i]};
          }
          __syncwarp();
        }
        if (lane.g == 0) shared.states[warp][8 * n + 2 * lane.t + i] = state;
      }
#pragma unroll
      for (int r = 0; r < Reader::row_tiles; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = Reader::channel(r, i / 2, lane.g);
          if (c >= width) continue;
          float& place = shared.sums[warp][8 * n + 2 * lane.t + i % 2][c];
          const float old = combine ? place * old_factor[i % 2] : 0.0f;
          place = __fmaf_rn(out[r][i], factor[i % 2], old);
        }
      }
    }
  }

  /// The decoded entries of a segment.
  __device__ __forceinline__ void read_sealed(const Segment& s, Source& source, bool after_exact) {
    typename Keys::Query query;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      Keys::load_query(query, n, shared.queries[8 * n], query_stride);
    }
    typename Values::Sums sums;
    RunningSoftmax<tiles> softmax;
    softmax.start();
    std::uint32_t read[2];
    exchange_rows(read);
    const std::uint32_t ones = shared_address(shared.ones);
    while (source.has_block()) {
      const BlockInfo block = source.wait(call);
      float x[tiles][4][4];
      Keys::logits(block.keys, query, norm, softmax.base, x);
      source.next_part(call);
      if (call.params.logit_soft_cap > 0) cap(softmax, x);
      if (!block.whole) mask_block(s, source.entry(), x);
      softmax.settle(x, [&](int n, float c0, float c1) { Values::scale(sums, n, c0, c1); });
      std::uint32_t p[tiles][2][4];
      exchange(x, read, p);
      Values::add(source.values(), ones, p, sums);
      source.release(call);
    }
    publish<Values>(sums, softmax, after_exact);
  }

  template <int MTiles>
  __device__ void cap(const RunningSoftmax<tiles>& softmax, float (&x)[tiles][MTiles][4]) const {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int m = 0; m < MTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float base = softmax.base[n][i & 1];
          x[n][m][i] = soft_capped(x[n][m][i] + base, call.params.logit_soft_cap) - base;
        }
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
