/// Loading of one sequence into a device cache: checked on the host, then written to the mirror and
/// to the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>

#include "terse/cache/load.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/cache/copy_queue.cuh"
#include "terse/cuda/cache/device_state.cuh"
#include "terse/cuda/cache/sequences.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Writes tables of the mirror and queues copies to the device (the target of
/// terse::detail::SequenceFiller).
template <class State>
class DeviceTarget {
 public:
  DeviceTarget(State& state, cudaStream_t stream) noexcept : state_(state), copies_(stream, text) {}

  template <class T>
  void write_table(T* table, const std::byte* from, std::size_t count) noexcept {
    const std::size_t bytes = count * sizeof(T);
    std::memcpy(static_cast<void*>(table), from, bytes);
    if (bytes <= journal_bytes) {
      state_.journal().wrote(table, bytes);
    } else {
      copies_.copy(state_.on_device(table), from, bytes);
    }
  }
  void write_bytes(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    copies_.copy(to, from, bytes);
  }
  [[nodiscard]] Status finish() const noexcept { return copies_.finish(); }

 private:
  static constexpr const char* text =
      "terse::cuda::KVCache::load: the device reports an error half-way, so that it no longer has "
      "what the host believes; create the cache anew";
  /// Shorter tables join the journal, longer ones are a copy each.
  static constexpr std::size_t journal_bytes = 128;

  State& state_;
  CopyQueue copies_;
};

/// As the host's load_sequence. Waits, unless something is wrong with `in` or it finds no room.
template <class State>
[[nodiscard]] Expected<SequenceId> load_on_device(State& state, Span<const std::byte> in,
                                                  std::uint64_t model_fingerprint,
                                                  cudaStream_t stream) noexcept {
  const Expected<std::int64_t> length =
      terse::detail::check_saved(state.cache, in, model_fingerprint);
  if (!length.ok()) return length.status();
  Expected<SequenceId> sequence = create_sequence_on_device(state);
  if (!sequence.ok()) return sequence;
  state.journal().send();  // it clears tails, which are written next
  DeviceTarget<State> target(state, stream);
  terse::detail::fill_sequence(state.cache, *sequence, in.data(), *length, target);
  if (Status s = target.finish(); !s.ok()) return state.journal().break_off(s);
  return sequence;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
