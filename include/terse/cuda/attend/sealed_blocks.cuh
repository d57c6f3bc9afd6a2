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

  /// Leaves probabilities `[tile, m-tile, half]` in shared memory, for load_probabilities. By all
  /// lanes, which meet at the end.
  __device__ __forceinline__ static void store_probabilities(
      const std::uint32_t (&pairs)[tiles][4][2], const ExchangePlaces& places) {
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
  }
  /// B operands of a tile's two steps from the place that the lane names for them.
  __device__ __forceinline__ static void load_probabilities(std::uint32_t place, int n,
                                                            std::uint32_t (&p)[4]) {
    load_transposed(p, place + static_cast<unsigned>(n) * 1024u);
  }
  /// Probabilities `[tile, m-tile, half]` through shared memory into B operands.
  __device__ __forceinline__ static void exchange(const std::uint32_t (&pairs)[tiles][4][2],
                                                  const ExchangePlaces& places,
                                                  std::uint32_t (&p)[tiles][2][4]) {
    store_probabilities(pairs, places);
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) load_probabilities(places.read[pair], n, p[n][pair]);
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

  /// Bytes of a block that is read whole.
  template <class Codec>
  [[nodiscard]] __device__ static constexpr unsigned long long whole_bytes(Side side) {
    if constexpr (PlaneCodec<Codec>) {
      return static_cast<unsigned long long>(Codec::runs(width)) *
             static_cast<unsigned long long>(Codec::read_bytes(Codec::num_planes, width));
    } else {
      return Codec::record(side, width).bytes;
    }
  }

  /// Counts what a warp has read of `blocks` of a segment.
  __device__ __forceinline__ void count_bytes(const Segment& s, unsigned long long blocks,
                                              unsigned long long keys,
                                              unsigned long long values) const {
    if (call.bytes_read == nullptr || lane.index != 0 || blocks == 0) return;
    BytesRead& total = call.bytes_read[s.part * call.r.shape.unit.units + s.unit];
    const auto add = [](std::uint64_t& to, unsigned long long bytes) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&to), bytes);
    };
    add(total.keys, keys);
    add(total.values, values);
    add(total.keys_stored, blocks * whole_bytes<typename Base::Policy::key_codec>(Side::key));
    add(total.values_stored, blocks * whole_bytes<typename Base::Policy::value_codec>(Side::value));
  }

  /// The decoded entries of a segment, planes copied as deep as the call's tolerances ask.
  __device__ __forceinline__ void read_planes(const Segment& s, Source& source, bool after_exact) {
    using KeyCodec = typename Base::Policy::key_codec;
    using ValueCodec = typename Base::Policy::value_codec;
    constexpr float log2e = 1.4426950408889634f;
    const PlaneReading& reading = call.params.planes;
    const bool reads_all = reading.rule == PlaneRule::everything;
    KeyWeights<width> weights;
    weights.load(shared.queries[0], query_stride, shared.norms, s.vectors, lane);
    typename Values::Sums sums;
    LeastSums<tiles> least;
    RunningSoftmax<tiles> softmax;
    softmax.start(s.vectors, lane.t);
    const ExchangePlaces exchange_at = exchange_places();
    const float tokens = static_cast<float>(s.work.decoded * block_tokens);
    unsigned long long key_bytes = 0, value_bytes = 0, blocks = 0;
    const bool counts = call.bytes_read != nullptr;
    KeyExponents<width> exponents;
    typename Keys::Plan plan;
    const auto make_plan = [&] {
      if (reads_all) {
        plan.decide([](int, int) { return true; });
      } else {
        plan = plan_keys<KeyCodec, width>(weights, exponents, reading.logit_tolerance * log2e);
      }
      if (counts) key_bytes += static_cast<unsigned>(plan.bytes());
    };
    constexpr auto place_bytes = static_cast<unsigned>(Source::place_bytes);
    const typename Keys::Places keys_at =
        Keys::places(source.places(), shared.queries[0], query_stride);
    const typename Values::Places values_at = Values::places(source.places());
    // Keys are planned while the values in front are on their way, and follow them piece by piece.
    // Always, three pieces may be on their way behind the one that is waited for; some are empty.
    bool is_fetched = false;
    while (source.has_block()) {
      ++blocks;
      const std::byte* keys = source.take();
      const std::byte* values = keys + call.r.shape.value_offset(0);
      const std::uint32_t value_exponents = __ldcg(reinterpret_cast<const unsigned short*>(
          values + (Values::exponents_offset + 8 * lane.g + 2 * lane.t)));
      if (!is_fetched) {
        exponents.load(keys + Keys::exponents_offset, lane);
        make_plan();
#pragma unroll
        for (int i = 0; i < plane_pieces; ++i) {
          Keys::fetch(keys, 0, i, plan, keys_at, static_cast<unsigned>(i) * place_bytes);
          end_piece();
        }
      }
      const std::byte* ahead = source.ahead();
      if (ahead != nullptr) exponents.load(ahead + Keys::exponents_offset, lane);
      float products[tiles][4][4] = {}, x[tiles][4][4];
#pragma unroll 1
      for (int i = 0; i < plane_pieces; ++i) {
        wait_for_pieces<plane_pieces - 1>();
        Keys::multiply(keys_at, i, place_bytes, query_stride, products);
        end_piece();
      }
      Keys::finish(products, norm, softmax.base, x);
      correct(s, source.note(), softmax, x);
      std::uint32_t pairs[tiles][4][2];
      softmax.exponentials(x, pairs, [&](int n, float c0, float c1) {
        Values::scale(sums, n, c0, c1);
        least.scale(n, c0, c1);
      });
      typename Values::Plan value_plan;
      if (reads_all) {
        value_plan.decide([](int, int) { return true; });
      } else {
        least.add(pairs);
        value_plan = plan_values<ValueCodec, width, tiles>(pairs, least, s.vectors, value_exponents,
                                                           tokens, reading.value_tolerance, lane);
      }
      if (counts) value_bytes += static_cast<unsigned>(value_plan.bytes(width));
      store_probabilities(pairs, exchange_at);  // behind it all lanes have read the keys
      Values::fetch(values, value_plan, values_at, place_bytes);
      is_fetched = ahead != nullptr;
      if (is_fetched) make_plan();
#pragma unroll 1
      for (int pair = 0; pair < 2; ++pair) {
        std::uint32_t p[tiles][4];
#pragma unroll
        for (int n = 0; n < tiles; ++n) load_probabilities(exchange_at.read[pair], n, p[n]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const unsigned offset = static_cast<unsigned>(2 * pair + i) * place_bytes;
          std::uint32_t own[tiles][2];
#pragma unroll
          for (int n = 0; n < tiles; ++n) {
            own[n][0] = p[n][2 * i];
            own[n][1] = p[n][2 * i + 1];
          }
          wait_for_pieces<plane_pieces - 1>();
          Values::add(values_at, offset, own, sums);
          __syncwarp();
          if (is_fetched) Keys::fetch(ahead, pair * (width / 2), i, plan, keys_at, offset);
          end_piece();
        }
        plan.drop_half();
      }
      source.release(call);
    }
    wait_for_pieces<0>();
    count_bytes(s, blocks, key_bytes, value_bytes);
    publish<Values>(sums, softmax, after_exact);
  }

  /// The decoded entries of a segment.
  __device__ __forceinline__ void read_sealed(const Segment& s, Source& source, bool after_exact) {
    if constexpr (Source::reads_planes) {
      read_planes(s, source, after_exact);
    } else {
      read_blocks(s, source, after_exact);
    }
  }

 private:
  /// Blocks that are read whole.
  __device__ __forceinline__ void read_blocks(const Segment& s, Source& source, bool after_exact) {
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
    unsigned long long blocks = 0;
    while (source.has_block()) {
      ++blocks;
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
    count_bytes(s, blocks, blocks * whole_bytes<typename Base::Policy::key_codec>(Side::key),
                blocks * whole_bytes<typename Base::Policy::value_codec>(Side::value));
    publish<Values>(sums, softmax, after_exact);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
