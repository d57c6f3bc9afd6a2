/// Steps of a device cache: the host's, and what kernels must know of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/append.hpp"
#include "terse/cache/steps.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/append/launch.cuh"
#include "terse/cuda/cache/device_state.cuh"
#include "terse/cuda/cache/verify_step.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class State>
[[nodiscard]] Status begin_step_on_device(State& state, Span<const StepPart> parts) noexcept {
  std::int64_t rows = 0;
  for (const StepPart& part : parts) rows += part.tokens > 0 ? part.tokens : 0;
  if (rows > 0x7fffffff) {
    return error(StatusCode::too_many_tokens,
                 "terse::cuda::KVCache::begin_step: a step is limited to 2^31 - 1 rows", rows);
  }
  if (Status s = terse::detail::begin_step(state.cache, parts); !s.ok()) return s;
  state.must_verify = false;
  // Parts are often those of the step before.
  const auto replace = [&](auto& place, auto value) {
    if (place != value) state.cache.memory.set(place, value);
  };
  std::int32_t row = 0;
  for (int i = 0; i < state.cache.num_parts; ++i) {
    const StepPart& part = state.cache.parts[i];
    replace(state.tables.parts[i].sequence.index, part.sequence.index);
    replace(state.tables.parts[i].sequence.generation, part.sequence.generation);
    replace(state.tables.parts[i].tokens, part.tokens);
    replace(state.tables.first_rows[i], row);
    row += part.tokens;
  }
  replace(*state.tables.num_parts, state.cache.num_parts);
  return {};
}

template <class State, class Store>
[[nodiscard]] Status launch_append(const State& state, const Store& store, int slot,
                                   const AppendInputs& inputs, int slot_of_all,
                                   cudaStream_t stream) noexcept {
  AppendCall<typename Store::Ref> call{};
  call.r = state.view(store, slot);
  call.in = inputs;
  call.step = state.step_view();
  call.failure = state.failure_tables();
  call.slot = slot_of_all;
  call.num_parts = state.cache.num_parts;
  for (int i = 0; i < state.cache.num_parts; ++i) {
    const StepPart& part = state.cache.parts[i];
    call.num_rows += part.tokens;
    call.most_tokens = std::max(call.most_tokens, part.tokens);
    const std::int64_t length = state.cache.sequences[part.sequence.index].length_tokens;
    if (Status s = terse::detail::check_rope_table(call.r, inputs.rope, length + part.tokens);
        !s.ok()) {
      return s;
    }
  }
  return append_on_device(call, stream);
}

/// The mirror's half of an append.
template <class State, class Store>
void mark_slot(const State& state, const Store& store, int slot) noexcept {
  const auto r = store.ref(slot);
  for (int i = 0; i < state.cache.num_parts; ++i) {
    const int sequence = state.cache.parts[i].sequence.index;
    terse::detail::mark_appended(store, r, sequence, state.cache.sequences[sequence].length_tokens,
                                 state.cache.parts[i].tokens);
  }
}

template <class State>
void mark_all_slots(State& state) noexcept {
  int slot = 0;
  state.cache.for_each_store([&](auto& store) {
    for (int s = 0; s < store.shape.slots; ++s, ++slot) {
      if (!state.cache.slot_written[slot]) mark_slot(state, store, s);
      state.cache.slot_written[slot] = true;
    }
  });
}

template <class State>
[[nodiscard]] Status append(State& state, int layer, const AppendInputs& inputs,
                            cudaStream_t stream) noexcept {
  auto& cache = state.cache;
  if (!cache.in_step) return terse::detail::outside_step();
  if (Status s = state.journal().status(); !s.ok()) return s;
  if (Status s = cache.check_layer(layer); !s.ok()) return s;
  const LayerPlace at = cache.places[layer];
  const int slot = cache.slot_base[at.policy_class] + at.slot;
  if (cache.slot_written[slot]) {
    return error(StatusCode::already_appended,
                 "terse::cuda::KVCache::append: this step's tokens are already in the layer's slot",
                 at.slot);
  }
  bool is_capturing = false;
  if (Status s = find_capture(stream, &is_capturing); !s.ok()) return s;
  state.must_verify = state.must_verify || is_capturing;
  Status status{};
  cache.with_store(at.policy_class, [&](auto& store) {
    status = launch_append(state, store, at.slot, inputs, slot, stream);
    if (status.ok()) mark_slot(state, store, at.slot);
  });
  cache.slot_written[slot] = status.ok();
  return status;
}

template <class State>
[[nodiscard]] Status launch_verify(const State& state, cudaStream_t stream) noexcept {
  constexpr int threads = 128;
  return launch_kernel(
      {dim3(static_cast<unsigned>(ceil_div(state.cache.num_parts, threads))), threads}, stream,
      "terse::cuda::KVCache::commit_step: a launch failed", verify_step<threads>, state.step_view(),
      state.failure_tables());
}

template <class State>
[[nodiscard]] Status commit_step_on_device(State& state, Span<const int> accepted_tokens,
                                           cudaStream_t stream) noexcept {
  if (!state.cache.in_step) return terse::detail::outside_step();
  if (Status s = terse::detail::check_commit(state.cache, accepted_tokens); !s.ok()) return s;
  if (state.must_verify) {
    if (Status s = launch_verify(state, stream); !s.ok()) return s;
  }
  return terse::detail::commit_step(state.cache, accepted_tokens);
}

template <class State>
[[nodiscard]] Status abandon_step_on_device(State& state) noexcept {
  if (!state.cache.in_step) return terse::detail::outside_step();
  mark_all_slots(state);  // a graph may have been launched without the host being told
  return terse::detail::abandon_step(state.cache);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
