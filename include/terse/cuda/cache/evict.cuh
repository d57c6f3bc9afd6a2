/// Eviction of a device cache: the evictor runs on the device, what it kills is read back into the
/// mirror.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <type_traits>

#include "terse/cache/evict.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/cache/check_sequences.cuh"
#include "terse/cuda/cache/device_state.cuh"
#include "terse/cuda/evict/drop_kernel.cuh"
#include "terse/cuda/evict/select_kernel.cuh"
#include "terse/cuda/evict/sequence_list.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr const char* evict_failed =
    "terse::cuda::KVCache::evict: the device reports an error half-way, so that it no longer has "
    "what the host believes; create the cache anew";

template <class Store>
inline constexpr bool evicts = evicts_tokens<typename Store::Ref::policy>;

/// Whether the device can run a class's evictor.
template <class Store>
[[nodiscard]] Status prepare_select(const Store& store) noexcept {
  using Ref = typename Store::Ref;
  static_assert(SelectsOnDevice<typename Ref::policy::evictor, Ref>,
                "terse::cuda::KVCache::evict: make the evictor's select a TERSE_HOST_DEVICE "
                "template over its list, template <class Tokens> static void select(Tokens&, const "
                "Params&, const SelectContext&): see terse/policy/evictor.hpp.");
  return allow_shared_bytes(
      select_kernel<Ref>, UnitTokens<Ref>::shared_bytes(store.shape.entries),
      "terse::cuda::KVCache::evict: units of so many blocks need more shared memory than the "
      "device has; detail: bytes",
      "terse::cuda::KVCache::evict: the program holds no code for this device");
}

/// Runs the evictor of class `k`, lets the masks that are left follow into the mirror's copy of
/// StepTables::masks, and drops dead entries.
template <class State, class Store>
[[nodiscard]] Status evict_class(const State& state, const Store& store, int k,
                                 Span<const SequenceId> sequences, int incoming_tokens,
                                 int mask_entries, cudaStream_t stream) noexcept {
  using Ref = typename Store::Ref;
  const ClassShape& shape = store.shape;
  const auto index_of = [&](std::size_t i) { return sequences[i].index; };
  EvictCall<Ref> call{};
  call.r = state.view(store, 0);
  call.incoming_tokens = incoming_tokens;
  call.num_sequences = static_cast<int>(sequences.size());
  call.masks = state.on_device(state.tables.masks[k]);
  call.mask_entries = mask_entries;
  // A launch for every list: a thread block for each of the `rows` of each slot and sequence.
  const auto launch = [&](auto* kernel, int rows, int threads, std::size_t shared) {
    return for_each_list(
        sequences.size(), index_of, [&](const SequenceList& list, std::size_t begin) {
          call.first = static_cast<int>(begin);
          call.list = list;
          const dim3 grid(static_cast<unsigned>(shape.slots * rows),
                          static_cast<unsigned>(list.count));
          return launch_kernel({grid, threads, shared}, stream, evict_failed, kernel, call);
        });
  };
  if (Status s = launch(select_kernel<Ref>, shape.unit.units, select_threads,
                        UnitTokens<Ref>::shared_bytes(shape.entries));
      !s.ok()) {
    return s;
  }
  const std::size_t bytes = static_cast<std::size_t>(shape.slots * shape.unit.units) *
                            sequences.size() * static_cast<std::size_t>(mask_entries) *
                            sizeof(std::uint64_t);
  if (Status s = to_status(
          cudaMemcpyAsync(state.tables.masks[k], call.masks, bytes, cudaMemcpyDeviceToHost, stream),
          evict_failed);
      !s.ok()) {
    return s;
  }
  if constexpr (State::layout::paged) {
    return launch(drop_kernel<Ref>, shape.rows, drop_threads, 0);
  }
  return {};
}

/// Most entries of a list of the sequences.
template <class Store>
[[nodiscard]] int most_entries(const Store& store, Span<const SequenceId> sequences) noexcept {
  int most = 0;
  for (const SequenceId id : sequences) {
    for (int s = 0; s < store.shape.slots; ++s) {
      const auto r = store.ref(s);
      for (int row = 0; row < store.shape.rows; ++row) {
        most = std::max(most, r.entry_count(id.index, row));
      }
    }
  }
  return most;
}

/// What the device has done to the tables, done to the mirror. Gives the pages that became free.
template <class Store>
[[nodiscard]] std::int64_t evict_in_mirror(Store& store, const std::uint64_t* masks,
                                           int mask_entries,
                                           Span<const SequenceId> sequences) noexcept {
  const auto told = store.memory;
  store.memory = {};
  std::int64_t freed = 0;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (const SequenceId id : sequences) {
      for (int u = 0; u < store.shape.unit.units; ++u, masks += mask_entries) {
        std::copy_n(masks, r.entry_count(id.index, r.row_of_unit(u)), &r.live_mask(id.index, u, 0));
      }
    }
  }
  if constexpr (Store::Ref::layout::paged) {
    // Sequence after sequence, so that pages become free in the order in which they do on a host.
    for (const SequenceId id : sequences) {
      for (int s = 0; s < store.shape.slots; ++s) {
        const auto r = store.ref(s);
        for (int row = 0; row < store.shape.rows; ++row) {
          freed += terse::detail::drop_dead_entries(store, r, id.index, row);
        }
      }
    }
  }
  store.memory = told;
  return freed;
}

template <class State>
[[nodiscard]] Status check_evict(const State& state, Span<const SequenceId> sequences,
                                 int incoming_tokens) noexcept {
  if (state.cache.in_step) return terse::detail::inside_step();
  const auto id_of = [&](std::size_t i) { return sequences[i]; };
  if (Status s = check_distinct(state, sequences.size(), id_of); !s.ok()) return s;
  if (incoming_tokens < 0) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::KVCache::evict: incoming_tokens is negative", incoming_tokens);
  }
  Status status{};
  state.cache.for_each_store([&](const auto& store) {
    if constexpr (evicts<std::remove_cvref_t<decltype(store)>>) {
      if (status.ok()) status = prepare_select(store);
    }
  });
  return status;
}

/// Lets evictors choose in all slots of the sequences, then drops dead entries on the device and in
/// the mirror by the same rule. Nothing happens if one of them has failed. Waits.
template <class State>
[[nodiscard]] Expected<std::int64_t> evict_on_device(State& state, Span<const SequenceId> sequences,
                                                     int incoming_tokens,
                                                     cudaStream_t stream) noexcept {
  if (Status s = check_evict(state, sequences, incoming_tokens); !s.ok()) return s;
  if (Status s = check_not_failed(state, sequences, stream); !s.ok()) return s;
  Status status{};
  int mask_entries[State::num_classes] = {};
  int k = 0;
  state.cache.for_each_store([&](const auto& store) {
    if constexpr (evicts<std::remove_cvref_t<decltype(store)>>) {
      mask_entries[k] = most_entries(store, sequences);
      if (status.ok() && mask_entries[k] > 0) {
        status = evict_class(state, store, k, sequences, incoming_tokens, mask_entries[k], stream);
      }
    }
    ++k;
  });
  if (status.ok()) status = to_status(cudaStreamSynchronize(stream), evict_failed);
  if (!status.ok()) return state.journal().break_off(status);
  std::int64_t freed = 0;
  k = 0;
  state.cache.for_each_store([&](auto& store) {
    if constexpr (evicts<std::remove_cvref_t<decltype(store)>>) {
      freed += evict_in_mirror(store, state.tables.masks[k], mask_entries[k], sequences);
    }
    ++k;
  });
  return freed;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
