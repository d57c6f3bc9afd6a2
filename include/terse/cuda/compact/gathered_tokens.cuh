/// The live tokens that become one block of one unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// In shared memory.
struct GatheredTokens {
  // By rank, oldest first.
  int count;
  std::int32_t entry[block_tokens], token[block_tokens];
  std::int64_t position[block_tokens];
  // By place. An unused place repeats a neighbour, so that it does not widen a group's range.
  unsigned long long live;
  const std::byte* block[block_tokens];
  std::int32_t block_token[block_tokens];

  [[nodiscard]] __device__ bool is_used(int place) const { return (live >> place & 1u) != 0; }
};

/// Ranks up to 64 tokens of a unit, of entries [`entry`, `sealed`) and positions from `from` on:
/// before `to`, or, where the evictor scatters, which does not look at `to`, none more than 65535
/// behind the first. By one warp.
template <class Ref>
__device__ void rank_tokens(const Ref& r, int sequence, int unit, int entry, int sealed,
                            std::int64_t from, std::int64_t to, GatheredTokens& out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int n = 0;
  for (bool ends = false; !ends && n < block_tokens && entry < sealed; entry += 32) {
    const int own = entry + lane;
    std::uint64_t later = 0;
    if (own < sealed) {
      later = r.live_mask(sequence, unit, own);
      if (later != 0) later &= ~r.before(sequence, unit, own, from);
    }
    if constexpr (Ref::scatters) {
      const unsigned lanes = __ballot_sync(~0u, later != 0);
      if (lanes == 0) continue;
      if (n == 0) {
        std::int64_t first = 0;
        if (later != 0) {
          first = r.position(sequence, unit, own, __ffsll(static_cast<long long>(later)) - 1);
        }
        to = __shfl_sync(~0u, first, __ffs(static_cast<int>(lanes)) - 1) + 0x10000;
      }
    }
    std::uint64_t inside = 0;
    if (later != 0) inside = later & r.before(sequence, unit, own, to);
    ends = __any_sync(~0u, inside != later) != 0;
    const int own_count = count_ones(inside);
    int until = own_count;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, until, d);
      if (lane >= d) until += other;
    }
    int rank = n + until - own_count;
    for (; inside != 0 && rank < block_tokens; inside &= inside - 1, ++rank) {
      out.entry[rank] = own;
      out.token[rank] = __ffsll(static_cast<long long>(inside)) - 1;
    }
    n += __shfl_sync(~0u, until, 31);
  }
  if (lane == 0) {
    out.count = n < block_tokens ? n : block_tokens;
    out.live = 0;
  }
}

/// Ranks tokens as rank_tokens does, and finds which places they get: consecutive ones, or, where
/// the evictor does not scatter, those of their positions from `from` on. By all threads, at least
/// 64, which meet at the end.
template <class Ref>
__device__ void gather_tokens(const Ref& r, int sequence, int unit, int entry, int sealed,
                              std::int64_t from, std::int64_t to, GatheredTokens& out) {
  if (threadIdx.x < 32) rank_tokens(r, sequence, unit, entry, sealed, from, to, out);
  __syncthreads();
  const auto i = static_cast<int>(threadIdx.x);
  if (i < out.count) {
    const std::int64_t position = r.position(sequence, unit, out.entry[i], out.token[i]);
    out.position[i] = position;
    const int place = Ref::scatters ? i : static_cast<int>(position - from);
    atomicOr(&out.live, 1ull << place);
  }
  __syncthreads();
  if (i < block_tokens && out.count > 0) {
    const int until = count_ones(out.live & (~0ull >> (block_tokens - 1 - i)));
    const int rank = until > 0 ? until - 1 : 0;
    out.block[i] = r.block(sequence, unit, out.entry[rank]);
    out.block_token[i] = out.token[rank];
  }
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
