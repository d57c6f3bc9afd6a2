/// Caches that move between the host and the device.
#pragma once

#include <cstddef>
#include <cstring>
#include <cuda_runtime.h>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/create.hpp"
#include "terse/config.hpp"
#include "terse/cuda/cache/check_sequences.cuh"
#include "terse/cuda/cache/copy_queue.cuh"
#include "terse/cuda/cache/create.cuh"
#include "terse/cuda/cache/device_state.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class State>
[[nodiscard]] Status check_owns_pages(const State& state) noexcept {
  Status status{};
  state.for_each_store([&](const auto& store) {
    if (!store.borrows_pages) return;
    status = error(StatusCode::unsupported,
                   "terse::cuda::KVCache: pages that the engine lent are not copied; save and load "
                   "the sequences");
  });
  return status;
}

/// Makes `state` a copy of the cache that the buffers `host` hold. Waits.
template <class State>
[[nodiscard]] Status create_from(State& state, const CacheConfig& config, const Buffers& host,
                                 const CacheBuffers& buffers, cudaStream_t stream,
                                 const typename State::Classes::Configs& policies) {
  terse::detail::CacheState<typename State::layout, typename State::Classes> source;
  if (Status s = terse::detail::bind_buffers(source, config, host, policies); !s.ok()) return s;
  if (Status s = terse::detail::check_attached(source); !s.ok()) return s;
  if (Status s = check_owns_pages(source); !s.ok()) return s;
  if (Status s = bind_buffers_on_device(state, config, buffers, stream, policies); !s.ok()) {
    return s;
  }
  const MemoryPlan& plan = state.cache.plan;
  std::memcpy(buffers.mirror.data(), host.state.data(), plan.state_bytes);
  CopyQueue copies(stream, buffers_failed);
  copies.copy(buffers.pages.data(), host.pages.data(), plan.pages_bytes);
  copies.copy(buffers.tails.data(), host.tails.data(), plan.tails_bytes);
  if (Status s = copies.finish(); !s.ok()) return s;
  return start(state, stream);
}

/// Copies the cache to buffers of a host cache. Waits.
template <class State>
[[nodiscard]] Status copy_to_host(State& state, const Buffers& host, cudaStream_t stream) noexcept {
  auto& cache = state.cache;
  const MemoryPlan& plan = cache.plan;
  if (cache.in_step) return terse::detail::inside_step();
  if (Status s = check_owns_pages(cache); !s.ok()) return s;
  if (Status s = terse::detail::check_buffer(host.pages, plan.pages_bytes); !s.ok()) return s;
  if (Status s = terse::detail::check_buffer(host.tails, plan.tails_bytes); !s.ok()) return s;
  if (Status s = terse::detail::check_buffer(host.state, plan.state_bytes); !s.ok()) return s;
  if (Status s = check_none_failed(state, stream); !s.ok()) return s;
  // The mirror knows all but what tokens' evictor states are. Its record names no host cache.
  std::memcpy(host.state.data(), state.buffers.mirror.data(), plan.state_bytes);
  CopyQueue copies(stream, buffers_failed);
  copies.copy(host.pages.data(), state.buffers.pages.data(), plan.pages_bytes);
  copies.copy(host.tails.data(), state.buffers.tails.data(), plan.tails_bytes);
  cache.for_each_store([&](const auto& store) {
    if constexpr (std::remove_cvref_t<decltype(store)>::has_state) {
      auto* states = reinterpret_cast<std::byte*>(store.base.token_states);
      const std::size_t tokens = static_cast<std::size_t>(store.shape.slots) *
                                 store.base.unit_entry(store.shape.sequences, 0, 0) * block_tokens;
      copies.copy(host.state.data() + (states - state.buffers.mirror.data()),
                  state.on_device(states), tokens * sizeof *store.base.token_states);
    }
  });
  if (Status s = copies.finish(); !s.ok()) return s;
  const terse::detail::StateRecord record{terse::detail::state_magic, cache.state_record->identity};
  const auto offset =
      reinterpret_cast<std::byte*>(cache.state_record) - state.buffers.mirror.data();
  std::memcpy(host.state.data() + offset, &record, sizeof record);
  return {};
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
