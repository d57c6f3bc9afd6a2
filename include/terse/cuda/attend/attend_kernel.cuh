/// The attention kernel: thread blocks share the work by work_division.cuh, warps stream blocks
/// through rings of their own, partial results meet in the last thread block to arrive.
#pragma once

#include <cstddef>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/results.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/tuning.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Config>
struct AttendKernel : Results<Config> {
  using Base = Results<Config>;
  using Base::Base;
  using Base::call;
  using Base::exact_items;
  using Base::fetch_queries;
  using Base::finish;
  using Base::lane;
  using Base::prefetch_exact;
  using Base::read_exact;
  using Base::read_prefix;
  using Base::read_sealed;
  using Base::shared;
  using Base::store_queries;
  using Base::threads;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using typename Base::RawQueries;
  using typename Base::Source;

  __device__ void run() {
    if (threadIdx.x == threads - 1) shared.has_segment = false;
    if (threadIdx.x < 64) shared.ones[threadIdx.x] = __float2half(1.0f);
    Source source(shared.source, warp, lane.index);
    // Everything before may overlap the end of the kernel before it in the stream.
    const bool begins_early = call.lengths_are_settled;
    if (!begins_early) wait_for_previous_kernel();
    // Fewer places than warps would leave warps idle, and more partial results to merge.
    if (!divide_work<threads, warps>(call, vectors, shared.work, shared.walk)) {
      // The kernel behind this one relies on it that the one in front has ended.
      if (begins_early) wait_for_previous_kernel();
      return;
    }
    find_segments(0, 2);
    __syncthreads();
    if (!shared.has_segment) {
      if (begins_early) wait_for_previous_kernel();
      return;
    }
    const Segment& first = shared.segments[0];
    source.start(call, first, warp);
    this->prefetch_matrices(first);  // no kernel writes them
    bool waits = begins_early;
    if (waits) {
      // Others are found by positions that the append may be writing.
      if (first.work.exact_in_order) prefetch_exact(first);
      if (!fills_before_wait(first, shared.segments[1])) {
        source.prefetch(call);
        wait_for_previous_kernel();
        source.renew(call);
        waits = false;
      }
    }
    RawQueries queries;
    if (!waits) fetch_queries(first, queries);  // before the blocks, behind which they would wait
#pragma unroll 1
    for (int i = 0;; ++i) {
      const Segment& s = shared.segments[i % 3];
      const Segment& next = shared.segments[(i + 1) % 3];
      const bool is_last = s.is_last;
      source.fill(call, is_last ? nullptr : &next);
      if (waits) {
        wait_for_previous_kernel();
        fetch_queries(first, queries);
        waits = false;
      }
      if (!is_last) {
        prefetch_exact(next);
        this->prefetch_matrices(next);
      }
      store_queries(s, queries);
      const bool has_tokens = s.work.sequence >= 0 && s.vectors > 0;
      if (has_tokens) {
        const ExactItems items = exact_items(s);
        const bool has_exact = items.first < items.end;
        if (has_exact) read_exact(s, items);
        read_sealed(s, source, has_exact);
        if constexpr (Base::turns_prefix) read_prefix(s);
      }
      if (!is_last) fetch_queries(next, queries);
      find_segments(i + 2, i + 3);
      finish(s, has_tokens);
      if (is_last) break;
      __syncthreads();  // before segments and sums are written again
      source.enter_following(call);
    }
  }

 private:
  /// Whether an append in front writes nothing of what `fill` reads for the first segment and the
  /// one behind it.
  [[nodiscard]] __device__ __forceinline__ static bool fills_before_wait(const Segment& first,
                                                                         const Segment& second) {
    const auto is_settled = [](const Segment& s) {
      return min(s.end, s.work.decoded) <= s.work.settled;
    };
    return Source::fills_early && is_settled(first) && (first.is_last || is_settled(second));
  }

  /// Finds segments `first` to `end`, as far as there are so many. Each lies beside the two before.
  __device__ __forceinline__ void find_segments(int first, int end) {
    if (threadIdx.x != threads - 1) return;
#pragma unroll 1
    for (int n = first; n < end; ++n) {
      if (!next_segment(call, vectors, shared.walk, shared.segments[n % 3])) break;
      shared.has_segment = true;
    }
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::warps * 32, Config::blocks_per_multiprocessor)
    attend_kernel(const __grid_constant__ AttendCall<typename Config::Ref> call) {
  if constexpr (Config::hardware == compiled_hardware()) {
    extern __shared__ __align__(1024) std::byte terse_shared[];
    using Kernel = AttendKernel<Config>;
    Kernel kernel(call, *reinterpret_cast<typename Kernel::Shared*>(terse_shared));
    kernel.run();
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
