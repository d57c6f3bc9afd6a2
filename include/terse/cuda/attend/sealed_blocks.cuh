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
  using Base::norm;
  using Base::query_stride;
  using Base::shared;
  using Base::tiles;
  using Base::vectors;
  using Base::warp;
  using Base::width;
  using typename Base::Keys;
  using typename Base::Order;
  using typename Base::Source;
  using typename Base::Values;

  /// Caps and masks logits of a block, where they are not to be taken as they are.
  __device__ __forceinline__ void correct(const Segment& s, const EntryNote& note,
                                          const RunningSoftmax<tiles>& softmax,
                                          float (&x)[tiles][4][4]) const {
    if (note.is_plain()) return;
    BlockLogits<tiles> logits;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      logits.base[n][0] = softmax.base[n][0];
      logits.base[n][1] = softmax.base[n][1];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) logits.x[n][m][i] = x[n][m][i];
      }
    }
    logits = corrected<Order>(call, s, note, shared.offsets, logits);
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[n][m][i] = logits.x[n][m][i];
      }
    }
  }

  /// Shared addresses of the lane in the exchange of probabilities.
  struct ExchangePlaces {
    std::uint32_t write;    ///< of its row in a tile of eight, before it is swizzled
    std::uint32_t read[2];  ///< of the row that it names for each pair of steps
  };

  /// Probabilities `[tile, m-tile, half]` through shared memory into B operands.
  __device__ __forceinline__ static void exchange(const std::uint32_t (&pairs)[tiles][4][2],
                                                  const ExchangePlaces& places,
                                                  std::uint32_t (&p)[tiles][2][4]) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          store_shared_4((places.write ^ static_cast<unsigned>(Order::swizzle(m, half) * 16)) +
                             static_cast<unsigned>(n * 1024 + (2 * m + half) * 128),
                         pairs[n][m][half]);
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        load_transposed(p[n][pair], places.read[pair] + static_cast<unsigned>(n) * 1024u);
      }
    }
    __syncwarp();
  }

  [[nodiscard]] __device__ __forceinline__ ExchangePlaces exchange_places() const {
    const std::uint32_t own =
        shared_address(shared.exchange) + static_cast<unsigned>(warp * tiles) * 1024u;
    const int matrix = lane.index / 8, r = lane.index % 8;
    ExchangePlaces places;
    places.write = pinned(own + static_cast<unsigned>(lane.g * 16 + lane.t * 4));
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int step = 2 * pair + (Values::steps_interleaved ? matrix & 1 : matrix >> 1);
      const int half = Values::steps_interleaved ? matrix >> 1 : matrix & 1;
      const int token = 16 * step + 4 * (r / 2) + 2 * half + r % 2;
      places.read[pair] = pinned(own + static_cast<unsigned>(Order::row_of_token(token)) * 16u);
    }
    return places;
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
    softmax.start(s.vectors, lane.t);
    const ExchangePlaces exchange_at = exchange_places();
    const typename Values::Places values_at = Values::places(shared_address(shared.ones));
    while (source.has_block()) {
      const std::uint32_t keys = source.wait(call);
      float x[tiles][4][4];
      Keys::logits(keys, query, norm, softmax.base, x);
      source.next_part(call);
      correct(s, source.note(), softmax, x);
      std::uint32_t pairs[tiles][4][2], p[tiles][2][4];
      softmax.exponentials(x, pairs,
                           [&](int n, float c0, float c1) { Values::scale(sums, n, c0, c1); });
      exchange(pairs, exchange_at, p);
      Values::add(source.values(), values_at, p, sums);
      source.release(call);
    }
    publish<Values>(sums, softmax, after_exact);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
