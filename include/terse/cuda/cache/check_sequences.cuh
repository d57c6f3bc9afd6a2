/// What a call has to know of its sequences before it does anything: that none occurs twice, that
/// none has failed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/cache/device_state.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Whether all handles are alive and none occurs twice.
template <class State, class IdOf>
[[nodiscard]] Status check_distinct(const State& state, std::size_t count, IdOf&& id_of) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    if (Status s = state.cache.check(id_of(i)); !s.ok()) return s;
  }
  bool* seen = state.seen.data();
  std::fill_n(seen, state.cache.config.max_sequences, false);
  for (std::size_t i = 0; i < count; ++i) {
    const int index = id_of(i).index;
    if (seen[index]) {
      return error(StatusCode::invalid_argument,
                   "terse::cuda::KVCache: a sequence occurs twice; detail: its index", index);
    }
    seen[index] = true;
  }
  return {};
}

/// Reads the device's records of all sequences into `state.records`. Waits.
template <class State>
[[nodiscard]] Status read_records(State& state, cudaStream_t stream) noexcept {
  constexpr const char* text = "terse::cuda::KVCache: the device cannot be read";
  const auto bytes =
      static_cast<std::size_t>(state.cache.config.max_sequences) * sizeof(SequenceRecord);
  if (Status s =
          to_status(cudaMemcpyAsync(state.records.data(), state.on_device(state.cache.sequences),
                                    bytes, cudaMemcpyDeviceToHost, stream),
                    text);
      !s.ok()) {
    return s;
  }
  return to_status(cudaStreamSynchronize(stream), text);
}

[[nodiscard]] inline Status not_recovered(std::int64_t sequence) noexcept {
  return error(StatusCode::wrong_phase,
               "terse::cuda::KVCache: a sequence has failed on the device; recover it first; "
               "detail: its index",
               sequence);
}

/// Refuses if one of the sequences has failed. Waits.
template <class State>
[[nodiscard]] Status check_not_failed(State& state, Span<const SequenceId> sequences,
                                      cudaStream_t stream) noexcept {
  if (Status s = read_records(state, stream); !s.ok()) return s;
  for (const SequenceId id : sequences) {
    if (state.records[id.index].failed != 0) return not_recovered(id.index);
  }
  return {};
}

/// Refuses if any living sequence has failed. Waits.
template <class State>
[[nodiscard]] Status check_none_failed(State& state, cudaStream_t stream) noexcept {
  if (Status s = read_records(state, stream); !s.ok()) return s;
  for (int i = 0; i < state.cache.config.max_sequences; ++i) {
    if (state.records[i].alive != 0 && state.records[i].failed != 0) return not_recovered(i);
  }
  return {};
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
