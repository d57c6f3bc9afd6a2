/// Column sums of attention: the probabilities that each stored token received, from the keys and
/// the rows' log-sum-exp.
///
/// A thread block has one unit of one part, and a run of its entries. All that is added to an entry
/// is added by that thread block in one order, so that sums are the same from run to run.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/attend/columns_share.cuh"
#include "terse/cuda/attend/exact_blocks.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/softmax.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/tuning.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Entries of a unit that a thread block has, at least: sinks lie in the first of them.
inline constexpr int least_column_entries = sink_block_tokens;

template <class Config>
struct ColumnsKernel : ExactBlocks<Config> {
  using Base = ExactBlocks<Config>;
  using Base::Base;
  using Base::call;
  using Base::correct;
  using Base::exact_block;
  using Base::exact_mask;
  using Base::fetch_queries;
  using Base::group;
  using Base::head_of;
  using Base::lane;
  using Base::norm;
  using Base::query_stride;
  using Base::row_of;
  using Base::shared;
  using Base::store_queries;
  using Base::threads;
  using Base::tiles;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using typename Base::Exact;
  using typename Base::Keys;
  using typename Base::Order;
  using typename Base::RawQueries;
  using typename Base::Source;
  using typename Base::TailReader;
  static_assert(warps == 4, "a warp has a quarter of an exact block");

  float* sums = nullptr;   ///< `[entry, 64]` of the unit
  int begin = 0, end = 0;  ///< entries of the thread block

  /// What is subtracted from the logits of the lane's columns (log2 units): no probability is left
  /// where a row sees nothing.
  __device__ void load_lse(const Segment& s, RunningSoftmax<tiles>& lse) const {
    constexpr float log2e = 1.4426950408889634f, nothing = 1e30f;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int v = 8 * n + 2 * lane.t + i;
        lse.base[n][i] = nothing;
        if (v >= s.vectors) continue;
        const int row = row_of(s, v);
        const int head = head_of(s, v, row);
        const float own =
            call.lse_ln[std::int64_t{s.row0 + row} * call.r.shape.query_heads + head] * log2e;
        if (own != -INFINITY) lse.base[n][i] = own - this->lse_offset(v);  // NaN shows in the sums
      }
    }
  }

  /// Probabilities of one row of an m-tile, over all columns; in all four lanes of the row.
  template <int MTiles>
  __device__ __forceinline__ static float sum_row(const float (&x)[tiles][MTiles][4], int m,
                                                  int half) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      sum += exp2_approximate(x[n][m][2 * half]) + exp2_approximate(x[n][m][2 * half + 1]);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  }

  __device__ void clear_sums() const {
    for (int i = begin * block_tokens + static_cast<int>(threadIdx.x); i < end * block_tokens;
         i += threads) {
      sums[i] = 0.0f;
    }
  }

  /// Adds the decoded entries of a tile of rows.
  __device__ void add_sealed(const Segment& s, Source& source, const RunningSoftmax<tiles>& lse) {
    typename Keys::Query query;
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      Keys::load_query(query, n, shared.queries[8 * n], query_stride);
    }
    while (source.has_block()) {
      const std::uint32_t keys = source.wait(call);
      float x[tiles][4][4];
      Keys::logits(keys, query, norm, lse.base, x);
      const int entry = source.note().entry();
      correct(s, source.note(), lse, x);
      source.release(call);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float sum = sum_row(x, m, half);
          if (lane.t == m)
            atomicAdd(sums + entry * block_tokens + Order::token(m, half, lane.g), sum);
        }
      }
    }
  }

  /// Probabilities of 16 exact tokens in form F: `visit(token, sum)` in one lane each.
  template <class F, class Visit>
  __device__ void visit_exact(const Segment& s, const RunningSoftmax<tiles>& lse, int item,
                              int quarter, Visit&& visit) {
    const bool is_sinks = item >= s.work.exact_blocks;
    const std::byte* block = exact_block(s, item);
    if (block == nullptr) return;
    const auto loads = this->template load_quarter<F>(block, is_sinks, quarter);  // keys only
    float y[tiles][1][4];
    F::logits(loads, shared.queries[0], query_stride, norm, y);
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint64_t mask =
            exact_mask(s, 8 * n + 2 * lane.t + i, is_sinks ? -1 : s.work.exact_first + item);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& x = y[n][0][2 * half + i];
          if (call.params.logit_soft_cap > 0) x = this->capped(x, 8 * n + 2 * lane.t + i);
          x -= lse.base[n][i];
          if ((mask >> (16 * quarter + F::token(half, lane.g)) & 1u) == 0) x = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_row(y, 0, half);
      if (lane.t == half) visit(16 * quarter + F::token(half, lane.g), sum);
    }
  }

  /// Adds the tail's blocks, a quarter a warp.
  __device__ void add_exact(const Segment& s, const RunningSoftmax<tiles>& lse) {
    const int last = min(end, s.work.exact_first + s.work.exact_blocks);
#pragma unroll 1
    for (int e = max(begin, s.work.exact_first); e < last; ++e) {
      visit_exact<TailReader>(s, lse, e - s.work.exact_first, warp, [&](int token, float sum) {
        atomicAdd(sums + e * block_tokens + token, sum);
      });
    }
  }

  /// Adds the sinks to the places at which entries hold their positions.
  __device__ void add_sinks(const Segment& s, const RunningSoftmax<tiles>& lse) {
    visit_exact<Exact>(s, lse, s.work.exact_blocks, 0, [&](int position, float sum) {
      if (position >= call.r.shape.tail.sink_tokens) return;
      for (int e = 0; e < end && e < sink_block_tokens; ++e) {
        const std::uint64_t live = call.r.live_mask(s.work.sequence, s.unit, e);
        for (int t = 0; t < block_tokens; ++t) {
          const std::int64_t own = call.r.position(s.work.sequence, s.unit, e, t);
          if (own > position) break;
          if (own == position && (live >> t & 1u) != 0) {
            atomicAdd(sums + e * block_tokens + t, sum);
            return;
          }
        }
      }
    });
  }

  __device__ void run(float* column_sums) {
    Source source(shared.source, warp, lane.index);
    wait_for_previous_kernel();
    Segment& s = shared.segments[0];
    if (threadIdx.x == 0) s = columns_share(call, vectors, least_column_entries);
    __syncthreads();
    begin = s.begin;
    end = s.end;
    if (begin >= end) return;
    sums = column_sums + columns_of_unit(call.r.shape, s);
    clear_sums();
    const bool has_sinks = begin == 0 && s.work.exact_items > s.work.exact_blocks;
#pragma unroll 1
    for (int tile = 0; tile < s.work.tiles; ++tile) {
      __syncthreads();  // the tile before has been read, the sums are clear
      if (threadIdx.x == 0) {
        s.first_vector = tile * vectors;
        s.vectors = min(s.work.rows * group() - s.first_vector, vectors);
      }
      __syncthreads();
      RawQueries queries;
      fetch_queries(s, queries);
      source.start(call, s, warp);
      source.fill(call, nullptr);
      store_queries(s, queries);
      RunningSoftmax<tiles> lse;
      load_lse(s, lse);
      add_exact(s, lse);
      __syncthreads();
      if (has_sinks) {
        if (warp == 0) add_sinks(s, lse);
        __syncthreads();
      }
      add_sealed(s, source, lse);
    }
  }
};

/// Grid: {part, unit} x run of entries.
template <class Config>
__global__ void __launch_bounds__(Config::warps * 32, Config::blocks_per_multiprocessor)
    columns_kernel(const __grid_constant__ AttendCall<typename Config::Ref> call,
                   float* column_sums) {
  if constexpr (Config::hardware == compiled_hardware()) {
    extern __shared__ __align__(1024) std::byte terse_shared[];
    using Kernel = ColumnsKernel<Config>;
    Kernel kernel(call, *reinterpret_cast<typename Kernel::Shared*>(terse_shared));
    kernel.run(column_sums);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
