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
  using Base::absorb;
  using Base::Base;
  using Base::call;
  using Base::clear;
  using Base::exact_items;
  using Base::fetch_queries;
  using Base::lane;
  using Base::meet;
  using Base::prefetch_exact;
  using Base::read_exact;
  using Base::read_prefix;
  using Base::read_sealed;
  using Base::shared;
  using Base::store;
  using Base::store_queries;
  using Base::threads;
  using Base::vectors;
  using Base::warp;
  using Base::warps;
  using typename Base::RawQueries;
  using typename Base::Source;
  using typename Base::Total;

  __device__ void run() {
    if (threadIdx.x < 64) shared.ones[threadIdx.x] = __float2half(1.0f);
    Source source(shared.source, warp, lane.index);
    // Everything before may overlap the end of the kernel before it in the stream.
    const bool divides_early = call.lengths_are_settled;
    if (!divides_early) wait_for_previous_kernel();
    // Fewer places than warps would leave warps idle, and more partial results to merge.
    if (!divide_work<threads, warps>(call, vectors, shared.work, shared.walk)) {
      // The kernel behind this one relies on it that the one in front has ended.
      if (divides_early) wait_for_previous_kernel();
      return;
    }
    RawQueries queries;
    // Turn i reads segment i and finds segment i + 2; turn -1 finds the first two.
#pragma unroll 1
    for (int i = -1;; ++i) {
      const Segment& s = shared.segments[(i + 3) % 3];
      const Segment& next = shared.segments[(i + 1) % 3];
      const bool reads = i >= 0, is_last = reads && s.is_last;
      if (reads) store_queries(queries);
      if (threadIdx.x == threads - 1) {
#pragma unroll 1
        for (int n = reads ? i + 2 : 0; n < i + 3 && shared.walk.place < shared.walk.end; ++n) {
          next_segment(call, vectors, shared.walk, shared.segments[n % 3]);
        }
      }
      __syncwarp();
      const bool has_tokens = reads && s.work.sequence >= 0;
      if (has_tokens) {
        const ExactItems items = exact_items(s);
        const bool has_exact = items.first < items.end;
        if (has_exact) read_exact(s, items);
        read_sealed(s, source, has_exact);
        if constexpr (Base::turns_prefix) read_prefix(s);
      }
      if (!reads) {
        __syncthreads();
        if (divides_early) wait_for_previous_kernel();
      }
      if (!is_last) {
        fetch_queries(next, queries);  // before the blocks, behind which they would wait
        source.begin(call, next, warp);
        prefetch_exact(next);
      }
      if (!reads) continue;
      Total total;
      clear(total);
      if (has_tokens) absorb(s, total);
      if (s.vectors > 0 && (s.first_block == s.last_block || meet(s, total))) store(s, total);
      if (is_last) break;
      __syncthreads();  // before segments and sums are written again
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
