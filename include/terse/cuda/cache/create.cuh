/// From a configuration to the sizes of a device cache's buffers, and from buffers to an empty
/// cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <utility>

#include "terse/cache/create.hpp"
#include "terse/config.hpp"
#include "terse/cuda/append/launch.cuh"
#include "terse/cuda/cache/device_state.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// First bytes of a device cache's tables: what lies there is no host cache, whose attach refuses
/// it, because the pool's tables are the mirror's alone.
inline constexpr std::uint64_t device_magic = 0x3130564454535254ull;  // "TRSTDV01"

/// Whether some device, or with `Here` the current one, can encode the blocks of all classes.
template <class State, bool Here, std::size_t... I>
[[nodiscard]] Status check_shapes(const MemoryPlan& plan, std::index_sequence<I...>) {
  const auto check = [&]<std::size_t K>() {
    using Ref = KVCacheRef<typename State::layout, typename State::Classes::template At<K>>;
    const ClassShape& shape = plan.classes[K].shape;
    return Here ? check_append_here<Ref>(shape) : check_append<Ref>(shape);
  };
  Status status{};
  ((status = status.ok() ? check.template operator()<I>() : status), ...);
  return status;
}

/// Divides the tables that follow those of a host cache.
template <class State, std::size_t... I>
void carve_tables(StepTables& tables, terse::detail::Carver& carver, const MemoryPlan& plan,
                  std::index_sequence<I...>) noexcept {
  const bool evicts[max_policy_classes] = {
      evicts_tokens<typename State::Classes::template At<I>>...};
  carver.take<std::byte>(plan.state_bytes);
  tables.carve(carver, plan, evicts);
}

template <class State>
[[nodiscard]] Expected<CachePlan> plan_device_cache(
    const CacheConfig& config, const typename State::Classes::Configs& policies) {
  const Expected<MemoryPlan> planned =
      terse::detail::plan_cache<decltype(State::cache)>(config, policies);
  if (!planned.ok()) return planned.status();
  constexpr std::make_index_sequence<State::Classes::size> classes{};
  if (Status s = check_shapes<State, false>(*planned, classes); !s.ok()) return s;
  CachePlan result;
  result.host = *planned;
  result.pages_bytes = planned->pages_bytes;
  result.tails_bytes = planned->tails_bytes;
  StepTables tables;
  terse::detail::Carver carver;
  carve_tables<State>(tables, carver, *planned, std::make_index_sequence<State::Classes::size>{});
  result.state_bytes = result.mirror_bytes = carver.used_bytes();
  return result;
}

inline constexpr const char* buffers_failed =
    "terse::cuda::KVCache: the buffers cannot be written or read";

/// Makes `state` one over buffers whose content is not yet written.
template <class State>
[[nodiscard]] Status bind_buffers_on_device(State& state, const CacheConfig& config,
                                            const CacheBuffers& buffers, cudaStream_t stream,
                                            const typename State::Classes::Configs& policies) {
  const Expected<CachePlan> plan = plan_device_cache<State>(config, policies);
  if (!plan.ok()) return plan.status();
  constexpr std::make_index_sequence<State::Classes::size> classes{};
  if (Status s = check_shapes<State, true>(plan->host, classes); !s.ok()) return s;
  if (Status s = refuse_capture(stream); !s.ok()) return s;
  if (Status s = terse::detail::check_buffer(buffers.state, plan->state_bytes); !s.ok()) return s;
  if (Status s = terse::detail::check_buffer(buffers.mirror, plan->mirror_bytes); !s.ok()) return s;
  const Buffers mirrored{buffers.pages, buffers.tails, buffers.mirror};
  if (Status s = terse::detail::bind_buffers(state.cache, config, mirrored, policies); !s.ok()) {
    return s;
  }
  state.journals = HostArray<Journal>(1);
  state.records = HostArray<SequenceRecord>(config.max_sequences);
  state.seen = HostArray<bool>(config.max_sequences);
  if (state.journals.data() == nullptr || state.records.data() == nullptr ||
      state.seen.data() == nullptr) {
    return error(StatusCode::unsupported, "terse::cuda::KVCache: out of host memory");
  }
  state.buffers = buffers;
  state.state_bytes = plan->state_bytes;
  terse::detail::Carver carver(buffers.mirror.data());
  carve_tables<State>(state.tables, carver, plan->host,
                      std::make_index_sequence<State::Classes::size>{});
  return {};
}

/// Sends the mirror, in which the tables of a host cache have been written, and begins. Waits.
template <class State>
[[nodiscard]] Status start(State& state, cudaStream_t stream) noexcept {
  state.cache.state_record->magic = device_magic;
  *state.tables.num_parts = 0;
  for (int i = 0; i < state.cache.config.max_sequences; ++i) {
    state.tables.parts[i] = {};
    state.tables.first_rows[i] = state.tables.truncations[i] = 0;
    state.tables.failures[i] = {};
  }
  if (Status s = to_status(cudaMemcpyAsync(state.buffers.state.data(), state.buffers.mirror.data(),
                                           state.state_bytes, cudaMemcpyHostToDevice, stream),
                           buffers_failed);
      !s.ok()) {
    return s;
  }
  if (Status s = to_status(cudaStreamSynchronize(stream), buffers_failed); !s.ok()) return s;
  state.journal().bind(state.buffers.mirror.data(), state.buffers.state.data());
  state.cache.memory.journal = &state.journal();
  state.cache.for_each_store([&](auto& store) { store.memory = state.cache.memory; });
  return {};
}

/// Makes `state` an empty cache over `buffers`. Waits for `stream`.
template <class State>
[[nodiscard]] Status create(State& state, const CacheConfig& config, const CacheBuffers& buffers,
                            cudaStream_t stream, const typename State::Classes::Configs& policies) {
  if (Status s = bind_buffers_on_device(state, config, buffers, stream, policies); !s.ok()) {
    return s;
  }
  terse::detail::reset(state.cache);
  const std::size_t tails = state.cache.plan.tails_bytes;
  if (tails > 0) {
    if (Status s =
            to_status(cudaMemsetAsync(buffers.tails.data(), 0, tails, stream), buffers_failed);
        !s.ok()) {
      return s;
    }
  }
  return start(state, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
