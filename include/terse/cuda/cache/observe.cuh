/// Feeding the evictors of a device cache.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>

#include "terse/cache/observe.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/cache/check_sequences.cuh"
#include "terse/cuda/cache/device_state.cuh"
#include "terse/cuda/evict/observe_kernel.cuh"
#include "terse/cuda/evict/sequence_list.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Feeds the parts of at least one token.
template <class State, class Store>
[[nodiscard]] Status observe_slot_on_device(State& state, const Store& store, int slot,
                                            int slot_of_all, Span<const StepPart> parts,
                                            Span<const float> column_sums,
                                            cudaStream_t stream) noexcept {
  using Ref = typename Store::Ref;
  if constexpr (Ref::policy::signal != Signal::column_sum) {
    return error(StatusCode::unsupported,
                 "terse::cuda::KVCache::observe: the policy's evictor takes no column sums");
  } else {
    constexpr const char* text =
        "terse::cuda::KVCache::observe: a launch failed half-way; create the cache anew";
    const std::size_t floats = terse::detail::column_sum_floats(store.shape);
    if (column_sums.size() < parts.size() * floats) {
      return error(StatusCode::buffer_too_small,
                   "terse::cuda::KVCache::observe: fewer column sums than parts * "
                   "column_sum_floats");
    }
    const int units = store.shape.unit.units;
    const auto index_of = [&](std::size_t i) {
      return parts[i].tokens > 0 ? parts[i].sequence.index : -1;
    };
    const Status status =
        for_each_list(parts.size(), index_of, [&](const SequenceList& list, std::size_t begin) {
          const ObserveCall<Ref> call{state.view(store, slot), state.failure_tables(), slot_of_all,
                                      column_sums.data() + begin * floats, list};
          const int shares = clamp(ceil_div(512, units * list.count), 1,
                                   ceil_div(store.shape.entries * block_tokens, observe_threads));
          const LaunchShape shape{
              dim3(static_cast<unsigned>(units), static_cast<unsigned>(list.count),
                   static_cast<unsigned>(shares)),
              observe_threads};
          if (Status s = launch_kernel(shape, stream, text, check_observed<Ref>, call); !s.ok()) {
            return s;
          }
          return launch_kernel(shape, stream, text, observe_kernel<Ref>, call);
        });
    return status.ok() ? status : state.journal().break_off(status);
  }
}

/// `column_sums [part, unit, entry, 64]`, device memory.
template <class State>
[[nodiscard]] Status observe_on_device(State& state, int layer, Span<const StepPart> parts,
                                       Span<const float> column_sums,
                                       cudaStream_t stream) noexcept {
  auto& cache = state.cache;
  if (cache.in_step) return terse::detail::observed_inside_step();
  if (Status s = cache.check_layer(layer); !s.ok()) return s;
  const auto id_of = [&](std::size_t i) { return parts[i].sequence; };
  if (Status s = check_distinct(state, parts.size(), id_of); !s.ok()) return s;
  const LayerPlace at = cache.places[layer];
  Status status{};
  cache.with_store(at.policy_class, [&](auto& store) {
    status =
        observe_slot_on_device(state, store, at.slot, cache.slot_base[at.policy_class] + at.slot,
                               parts, column_sums, stream);
  });
  return status;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
