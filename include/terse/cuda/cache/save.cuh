/// Saving of one sequence of a device cache: tables come from the mirror, the rest from the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/save.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/cache/check_sequences.cuh"
#include "terse/cuda/cache/copy_queue.cuh"
#include "terse/cuda/cache/device_state.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Queues copies from the device (the source of terse::detail::PayloadWriter). The mirror knows all
/// tables but what tokens' evictor states are.
template <class State>
class DeviceSource {
 public:
  DeviceSource(const State& state, cudaStream_t stream) noexcept
      : state_(state), copies_(stream, "terse::cuda::KVCache::save: the device cannot be read") {}

  template <class T>
  void read_states(std::byte* to, T* states, std::size_t count) noexcept {
    copies_.copy(to, state_.on_device(states), count * sizeof(T));
  }
  void read_bytes(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    copies_.copy(to, from, bytes);
  }
  [[nodiscard]] Status finish() const noexcept { return copies_.finish(); }

 private:
  const State& state_;
  CopyQueue copies_;
};

/// As the host's save_sequence; refuses sequences that have failed. Waits.
template <class State>
[[nodiscard]] Status save_on_device(State& state, SequenceId sequence,
                                    std::uint64_t model_fingerprint, Span<std::byte> out,
                                    cudaStream_t stream) noexcept {
  if (Status s = terse::detail::check_save(state.cache, sequence, out); !s.ok()) return s;
  if (Status s = check_not_failed(state, {&sequence, 1}, stream); !s.ok()) return s;
  DeviceSource<State> source(state, stream);
  terse::detail::write_payloads(state.cache, sequence, out.data(), source);
  if (Status s = source.finish(); !s.ok()) return s;
  terse::detail::write_headers(state.cache, sequence, model_fingerprint, out.data());
  return {};
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
