/// Feeding evictors what attention saw.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/evict/sequence_list.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int observe_threads = 256;

/// Pointers are the device's.
template <class Ref>
struct ObserveCall {
  Ref r;
  FailureTables failure;
  int slot;           // counted over all classes
  const float* sums;  // [part of the list, unit, entry, 64]
  SequenceList list;
};

/// The live tokens of the thread block's unit and part: `visit(sequence, place, sum)`.
template <class Ref, class Visit>
__device__ void visit_observed_on_device(const ObserveCall<Ref>& call, Visit&& visit) {
  const Ref& r = call.r;
  const int unit = static_cast<int>(blockIdx.x), part = static_cast<int>(blockIdx.y);
  const int sequence = call.list.sequences[part];
  if (sequence < 0) return;
  const float* sums = call.sums + (static_cast<std::size_t>(part) * r.shape.unit.units +
                                   static_cast<std::size_t>(unit)) *
                                      static_cast<std::size_t>(r.shape.entries) * block_tokens;
  const std::size_t at = r.unit_entry(sequence, unit, 0);
  const int tokens = r.entry_count(sequence, r.row_of_unit(unit)) * block_tokens;
  const int stride = static_cast<int>(gridDim.z) * observe_threads;
  for (int t = static_cast<int>(blockIdx.z) * observe_threads + static_cast<int>(threadIdx.x);
       t < tokens; t += stride) {
    if ((r.live[at + static_cast<std::size_t>(t / block_tokens)] >> (t % block_tokens) & 1u) != 0) {
      visit(sequence, at * block_tokens + static_cast<std::size_t>(t), sums[t]);
    }
  }
}

/// Fails the sequences that would be fed a number that is none. Grid: unit x part x share of
/// tokens.
template <class Ref>
__global__ void __launch_bounds__(observe_threads)
    check_observed(const __grid_constant__ ObserveCall<Ref> call) {
  visit_observed_on_device(call, [&](int sequence, std::size_t, float sum) {
    if (is_finite(sum)) return;
    fail_sequence(call.failure, sequence, StatusCode::not_finite, call.slot,
                  call.r.sequences[sequence].length_tokens);
  });
}

/// Feeds the evictor, where nothing has failed.
template <class Ref>
__global__ void __launch_bounds__(observe_threads)
    observe_kernel(const __grid_constant__ ObserveCall<Ref> call) {
  const int own = call.list.sequences[blockIdx.y];
  if (own < 0 || call.r.sequences[own].failed != 0) return;
  visit_observed_on_device(call, [&](int, std::size_t place, float sum) {
    Ref::policy::evictor::observe(call.r.token_states[place], sum);
  });
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
