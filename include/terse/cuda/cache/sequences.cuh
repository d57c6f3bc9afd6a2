/// The life of sequences of a device cache, where it is more than the host's: forks and truncations
/// of sequences that may have failed unnoticed, and their recovery.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/grid.hpp"
#include "terse/cache/sequences.hpp"
#include "terse/config.hpp"
#include "terse/cuda/cache/device_state.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class State>
[[nodiscard]] Expected<SequenceId> create_sequence_on_device(State& state) noexcept {
  Expected<SequenceId> id = terse::detail::create_sequence(state.cache);
  if (id.ok()) state.cache.memory.set(state.tables.truncations[id->index], 0);
  return id;
}

/// A failed sequence's twin has failed too.
template <class State>
[[nodiscard]] Expected<SequenceId> fork_sequence_on_device(State& state,
                                                           SequenceId source) noexcept {
  Expected<SequenceId> twin = terse::detail::fork_sequence(state.cache, source);
  if (!twin.ok()) return twin;
  const StepTables& tables = state.tables;
  state.cache.memory.set(tables.truncations[twin->index], tables.truncations[source.index]);
  state.journal().copy_table(&state.cache.sequences[twin->index].failed,
                             &state.cache.sequences[source.index].failed, sizeof(std::int32_t));
  state.journal().copy_table(tables.failures + twin->index, tables.failures + source.index,
                             sizeof(SequenceFailure));
  return twin;
}

template <class State>
[[nodiscard]] Status truncate_sequence_on_device(State& state, SequenceId sequence,
                                                 std::int64_t length_tokens) noexcept {
  if (Status s = state.cache.check_idle(sequence); !s.ok()) return s;
  const std::int64_t before = state.cache.sequences[sequence.index].length_tokens;
  Status s = terse::detail::truncate_sequence(state.cache, sequence, length_tokens);
  if (s.ok() && before != length_tokens) {
    std::int32_t& count = state.tables.truncations[sequence.index];
    state.cache.memory.set(count, count + 1);
  }
  return s;
}

/// A layer whose keys and values lie in a slot, counted over all classes.
template <class State>
[[nodiscard]] int layer_of_slot(const State& state, int slot) noexcept {
  int layer = 0;
  while (layer + 1 < state.cache.config.num_layers &&
         state.cache.slot_base[state.cache.places[layer].policy_class] +
                 state.cache.places[layer].slot !=
             slot) {
    ++layer;
  }
  return layer;
}

/// Reads one entry of a table of the device. Waits.
template <class State, class T>
[[nodiscard]] Status read_entry(const State& state, T* entry, T* value,
                                cudaStream_t stream) noexcept {
  constexpr const char* text = "terse::cuda::KVCache::recover: the device cannot be read";
  if (Status s = to_status(cudaMemcpyAsync(value, state.on_device(entry), sizeof *value,
                                           cudaMemcpyDeviceToHost, stream),
                           text);
      !s.ok()) {
    return s;
  }
  return to_status(cudaStreamSynchronize(stream), text);
}

/// Reads whether a sequence has failed, and takes it back to the step before. Waits.
template <class State>
[[nodiscard]] Status recover_sequence(State& state, SequenceId sequence,
                                      cudaStream_t stream) noexcept {
  if (Status s = state.cache.check_idle(sequence); !s.ok()) return s;
  SequenceRecord& record = state.cache.sequences[sequence.index];
  std::int32_t failed = 0;
  if (Status s = read_entry(state, &record.failed, &failed, stream); !s.ok()) return s;
  if (failed == 0) return {};
  SequenceFailure failure{};
  if (Status s = read_entry(state, state.tables.failures + sequence.index, &failure, stream);
      !s.ok()) {
    return s;
  }
  if (failure.truncations != state.tables.truncations[sequence.index]) {
    return error(
        StatusCode::stale_sequence,
        "terse::cuda::KVCache::recover: an append to this sequence failed on the device and "
        "the sequence was truncated since: release it",
        sequence.index);
  }
  if (failure.length_tokens < 0 || failure.length_tokens > record.length_tokens) {
    return error(StatusCode::device_error,
                 "terse::cuda::KVCache::recover: the device's tables have been overwritten",
                 failure.length_tokens);
  }
  // From then on the device has written nothing: the tail is as it was in that step.
  int k = 0;
  state.cache.for_each_store([&](auto& store) {
    store.base.grids[sequence.index].exact_begin = failure.exact_begin[k++];
    terse::detail::shrink(store, sequence.index, failure.length_tokens);
  });
  state.cache.memory.set(record.length_tokens, failure.length_tokens);
  state.cache.memory.wrote(&record.failed);  // zero in the mirror
  const auto code = static_cast<StatusCode>(failed);
  const int layer = layer_of_slot(state, failure.slot);
  if (code == StatusCode::not_finite) {
    return error(
        code,
        "terse::cuda::KVCache: an input of append or observe held NaN or infinity; the sequence "
        "is as before it; detail: the layer",
        layer);
  }
  if (code == StatusCode::invalid_argument) {
    return error(code,
                 "terse::cuda::KVCache: a source row of an append is none of its tensors, as where "
                 "a table names a page that does not exist, or its table of turns "
                 "(AppendInputs::rope) ends before a position; the sequence is as before it; "
                 "detail: the layer",
                 layer);
  }
  return error(code,
               "terse::cuda::KVCache: an append was not that of its step, by a graph that was "
               "replayed outside it or serves less; the sequence is as before it; detail: a layer",
               layer);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
