/// Which tokens of an entry the query rows of a tile read. Functions of their own, called for the
/// few blocks of which rows do not read every token, so that the loop over the others stays short:
/// code that lies in between is fetched with it.
#pragma once

#include <cmath>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/block_source.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/softmax.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/calibration.hpp"
#include "terse/policy/evictor.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// What the query row of vector `v` of the tile reads of an entry, without a prefix that it meets
/// turned by other steps (prefix_tokens.cuh).
template <class Ref>
[[nodiscard]] __device__ __noinline__ terse::detail::RowMask vector_mask(
    const AttendCall<Ref>& call, const Segment& s, int v, int entry) {
  if (v >= s.vectors) return {};
  terse::detail::RowMask mask =
      terse::detail::row_mask(call.r, s.work.sequence, s.unit, entry,
                              std::int64_t{s.work.oldest} + row_of_vector(call, s, v), call.params);
  if constexpr (Ref::policy::reindex == Reindex::cache_index) {
    const std::int64_t end = terse::detail::prefix_end(call.r);
    const std::uint64_t later = ~call.r.before(s.work.sequence, s.unit, entry, end);
    mask.decoded &= later;
    mask.exact &= later;
    mask.sinks = end < sink_block_tokens ? mask.sinks >> end << end : 0;
  }
  return mask;
}

/// Logits of a block of 64 tokens, `[tile, m-tile, 4]` of a lane, and what was subtracted from
/// them.
template <int Tiles>
struct BlockLogits {
  float x[Tiles][4][4];
  float base[Tiles][2];
};

/// Logits after the soft cap, where there is one, and -inf for decoded tokens that a row does not
/// read. `note` and `offsets [vector]`, which logits lack if the codec takes them off, lie in
/// shared memory.
template <class Order, int Tiles, class Ref>
[[nodiscard]] __device__ __noinline__ BlockLogits<Tiles> corrected(const AttendCall<Ref>& call,
                                                                   const Segment& s,
                                                                   const EntryNote& note,
                                                                   const float* offsets,
                                                                   BlockLogits<Tiles> logits) {
  const Lane lane = this_lane();
  const float cap = call.params.logit_soft_cap;
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float base = logits.base[n][i];
      float whole = base;
      if constexpr (HasQueryOffset<typename Ref::policy::key_codec>) {
        whole += offsets[8 * n + 2 * lane.t + i];
      }
      const std::uint64_t mask =
          note.is_common() ? note.live
                           : vector_mask(call, s, 8 * n + 2 * lane.t + i, note.entry()).decoded;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& x = logits.x[n][m][2 * half + i];
          if (cap > 0) x = soft_capped(x + whole, cap) - base;
          if ((mask >> Order::token(m, half, lane.g) & 1u) == 0) x = -INFINITY;
        }
      }
    }
  }
  return logits;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
