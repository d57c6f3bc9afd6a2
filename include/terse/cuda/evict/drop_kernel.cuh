/// Removal of sealed entries without a live token: what the host's drop_dead_entries does to the
/// tables, in a thread block a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/evict.hpp"
#include "terse/config.hpp"
#include "terse/cuda/evict/evict_call.cuh"
#include "terse/cuda/evict/unit_tokens.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Entries looked at together, a thread each.
inline constexpr int drop_threads = 256;

/// Moves element `i` of `table` to place targets[i], for the entries [0, drop_threads) whose target
/// is not negative, `pieces` elements an entry. Elements only move to the front, in order, and a
/// turn reads all of its own before it writes: none is overwritten before it is read.
template <class T>
__device__ void move_to_front(T* table, int first_entry, int pieces,
                              const int (&targets)[drop_threads]) {
#pragma unroll 1
  for (int turn = 0; turn < pieces; ++turn) {
    const int i = turn * drop_threads + static_cast<int>(threadIdx.x);
    const int entry = i / pieces, piece = i - entry * pieces;
    const int target = targets[entry];
    T x{};
    if (target >= 0) x = table[(first_entry + entry) * pieces + piece];
    __syncthreads();
    if (target >= 0) table[target * pieces + piece] = x;
    __syncthreads();
  }
}

/// Grid: {slot, row} x sequence of the list.
template <class Ref>
__global__ void __launch_bounds__(drop_threads)
    drop_kernel(const __grid_constant__ EvictCall<Ref> call) {
  __shared__ int targets[drop_threads], warp_sums[drop_threads / 32];
  const int rows = call.r.shape.rows;
  const Ref r = call.r.of_slot(static_cast<int>(blockIdx.x) / rows);
  const int row = static_cast<int>(blockIdx.x) % rows;
  const int sequence = call.list.sequences[blockIdx.y];
  const int unit = row * r.shape.units_per_row, end_unit = unit + r.shape.units_per_row;
  const int count = r.entry_count(sequence, row);
  int kept = 0;
  for (int begin = 0; begin < count; begin += drop_threads) {
    const int e = begin + static_cast<int>(threadIdx.x);
    const bool keeps = e < count && !terse::detail::is_dead_entry(r, sequence, row, e);
    int total = 0;
    const int until = sum_to_here<drop_threads>(keeps ? 1 : 0, warp_sums, &total);
    const int target = kept + until - 1;
    const bool moves = keeps && target != e;
    targets[threadIdx.x] = moves ? target : -1;
    kept += total;
    if (__syncthreads_or(moves ? 1 : 0) == 0) continue;
    for (int u = unit; u < end_unit; ++u) {
      const std::size_t at = r.unit_entry(sequence, u, 0);
      move_to_front(r.live + at, begin, 1, targets);
      move_to_front(r.first_positions + at, begin, 1, targets);
      if constexpr (Ref::scatters) {
        constexpr int words = block_tokens * static_cast<int>(sizeof(std::uint16_t)) / 16;
        move_to_front(reinterpret_cast<uint4*>(r.position_deltas + at * block_tokens), begin, words,
                      targets);
      }
      if constexpr (token_state_bytes < typename Ref::policy::evictor >> 0) {
        constexpr int words =
            block_tokens * static_cast<int>(sizeof(typename Ref::TokenState)) / 16;
        move_to_front(reinterpret_cast<uint4*>(r.token_states + at * block_tokens), begin, words,
                      targets);
      }
    }
    move_to_front(
        r.page_table + r.row_index(sequence, row) * static_cast<std::size_t>(r.shape.entries),
        begin, 1, targets);
  }
  if (threadIdx.x == 0) r.entry_count(sequence, row) = kept;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
