/// The evictor's choice, a thread block a unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/evict/evict_call.cuh"
#include "terse/cuda/evict/unit_tokens.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class E, class Ref>
concept SelectsOnDevice = requires(UnitTokens<Ref>& tokens, const typename E::Params& params,
                                   const SelectContext& context) {
  E::select(tokens, params, context);
};

/// Grid: {slot, unit} x sequence of the list.
template <class Ref>
__global__ void __launch_bounds__(select_threads)
    select_kernel(const __grid_constant__ EvictCall<Ref> call) {
  extern __shared__ __align__(16) std::byte select_shared[];
  const int units = call.r.shape.unit.units;
  const int slot = static_cast<int>(blockIdx.x) / units,
            unit = static_cast<int>(blockIdx.x) % units;
  const Ref r = call.r.of_slot(slot);
  const int sequence = call.list.sequences[blockIdx.y];
  const std::int64_t length = r.sequences[sequence].length_tokens;
  UnitTokens<Ref> tokens(r, sequence, unit, length, select_shared);
  Ref::policy::evictor::select(tokens, r.eviction, SelectContext{length, call.incoming_tokens});
  __syncthreads();
  const int own = slot * call.num_sequences + call.first + static_cast<int>(blockIdx.y);
  std::uint64_t* masks =
      call.masks + (static_cast<std::size_t>(own) * units + static_cast<std::size_t>(unit)) *
                       static_cast<std::size_t>(call.mask_entries);
  for (int e = static_cast<int>(threadIdx.x); e < r.entry_count(sequence, r.row_of_unit(unit));
       e += select_threads) {
    masks[e] = r.live_mask(sequence, unit, e);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
