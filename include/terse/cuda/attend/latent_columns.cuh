/// Column sums of attention to latents: as columns_kernel.cuh, with keys that are rebuilt. All that
/// is added to an entry is added by one thread block in one order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/columns_share.cuh"
#include "terse/cuda/attend/latent_blocks.cuh"
#include "terse/cuda/attend/latent_memory.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Ref>
struct LatentColumns : LatentBlocks<Ref> {
  using Base = LatentBlocks<Ref>;
  using Base::Base;
  using Base::call;
  using Base::load_angles;
  using Base::load_queries;
  using Base::log2e;
  using Base::memory;
  using Base::query_head;
  using Base::row_of;
  using Base::score;
  using Base::scores;
  using Base::select;
  using Base::shared;
  using Base::thread;
  using Base::threads;

  __device__ void run(float* column_sums) {
    wait_for_previous_kernel();
    Segment& s = shared.segment;
    if (thread == 0) s = columns_share(call, memory.vectors, 1);
    load_angles();
    __syncthreads();
    if (s.begin >= s.end) return;
    float* own = column_sums + columns_of_unit(call.r.shape, s);
    for (int i = s.begin * block_tokens + thread; i < s.end * block_tokens; i += threads) {
      own[i] = 0.0f;
    }
    const int tiles = s.work.tiles * call.r.shape.unit.heads_per_unit;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      __syncthreads();  // the tile before has been read, the sums are clear
      if (thread == 0) {
        s.kv_head = s.unit * call.r.shape.unit.heads_per_unit + i / s.work.tiles;
        s.first_vector = i % s.work.tiles * memory.vectors;
        s.vectors = min(s.work.rows * call.group - s.first_vector, memory.vectors);
      }
      __syncthreads();
      load_queries(s);
      load_lse(s);
#pragma unroll 1
      for (int e = s.begin; e < s.end; ++e) add_entry(s, e, own + e * block_tokens);
    }
  }

 private:
  /// What is subtracted from a vector's logits (log2 units): no probability is left where a row
  /// sees nothing.
  __device__ void load_lse(const Segment& s) {
    constexpr float nothing = 1e30f;
    if (thread >= memory.vectors) return;
    float lse = -INFINITY;
    if (thread < s.vectors) {
      lse = call.lse_ln[(s.row0 + row_of(s, thread)) * call.r.shape.query_heads +
                        query_head(s, thread)];
    }
    shared.states[thread].x = lse == -INFINITY ? nothing : lse * log2e;
  }

  /// Adds what the tokens of an entry receive, wherever they lie.
  __device__ void add_entry(const Segment& s, int entry, float* own) {
    const Ref& r = call.r;
    const int sequence = s.work.sequence;
    const std::int32_t page = r.page(sequence, s.list, entry);
    if (page >= 0 && page < r.shape.num_pages) {
      add_block(s, {LatentForm::encoded, r.block(sequence, s.unit, entry), entry}, own);
    }
    const int first = r.first_position(sequence, s.unit, entry);
    if (!r.shape.open && first >= r.grids[sequence].exact_begin) {
      add_block(s, {LatentForm::tail, r.tail_block(sequence, s.unit, first), entry}, own);
    }
    if (first < r.shape.tail.sink_tokens) {
      add_block(s, {LatentForm::sinks, r.sink_block(sequence, s.unit), entry}, own);
    }
  }

  __device__ void add_block(const Segment& s, const LatentBlock& block, float* own) {
    if (!select(s, block)) return;
    score(s, block);
    if (thread >= block_tokens) return;
    int place = thread;
    if (block.form == LatentForm::sinks) {  // those lie by position
      const std::int64_t position = call.r.position(s.work.sequence, s.unit, block.entry, thread);
      const bool lives =
          (call.r.live_mask(s.work.sequence, s.unit, block.entry) >> thread & 1u) != 0;
      if (!lives || position >= call.r.shape.tail.sink_tokens) return;
      place = static_cast<int>(position);
    }
    float sum = 0.0f;
    for (int v = 0; v < memory.vectors; ++v) {
      sum += exp2_approximate(scores[v * LatentMemory::score_stride + place] - shared.states[v].x);
    }
    own[thread] += sum;
  }
};

/// Grid: {part, unit} x run of entries.
template <class Ref>
__global__ void __launch_bounds__(latent_threads, 2)
    latent_columns_kernel(const __grid_constant__ AttendCall<Ref> call,
                          const __grid_constant__ LatentMemory memory, float* column_sums) {
  extern __shared__ __align__(1024) std::byte terse_shared[];
  LatentColumns<Ref>(call, memory, terse_shared).run(column_sums);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
