/// What a cuda::KVCache holds: the host's state over the mirror, the caller's buffers, the journal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/config.hpp"
#include "terse/core/host_array.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/cache/journal.cuh"
#include "terse/cuda/cache/step_record.cuh"
#include "terse/cuda/device_ref.cuh"
#include "terse/policy/evictor.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// Exact sizes of the buffers of a cache on the device.
struct CachePlan {
  std::size_t pages_bytes = 0;
  std::size_t tails_bytes = 0;
  std::size_t state_bytes = 0;
  std::size_t mirror_bytes = 0;  ///< on the host: the tables that the device has too, and the pool
  MemoryPlan host{};             ///< of a cache of the host: shapes, bits, shares of the classes
};

/// Memory that the caller lends for the life of the cache, each 128-byte aligned. Work in the
/// stream may read a pinned mirror after the call that queued it: it can be freed when the stream
/// has passed.
struct CacheBuffers {
  Span<std::byte> pages;   ///< device
  Span<std::byte> tails;   ///< device
  Span<std::byte> state;   ///< device
  Span<std::byte> mirror;  ///< host, pinned or not
};

namespace detail {

[[nodiscard]] inline Status find_capture(cudaStream_t stream, bool* is_capturing) noexcept {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  const Status s = to_status(cudaStreamIsCapturing(stream, &capture),
                             "terse::cuda::KVCache: the stream cannot be used");
  *is_capturing = capture != cudaStreamCaptureStatusNone;
  return s;
}
[[nodiscard]] inline Status refuse_capture(cudaStream_t stream) noexcept {
  bool is_capturing = false;
  if (Status s = find_capture(stream, &is_capturing); !s.ok()) return s;
  if (!is_capturing) return {};
  return error(
      StatusCode::wrong_phase,
      "terse::cuda::KVCache: this call cannot be captured, its replay would bring back old "
      "tables; only append, encode_ahead and attend can");
}

template <Layout L, class ClassesOfPolicies>
struct DeviceState {
  using layout = L;
  using Classes = ClassesOfPolicies;
  static constexpr int num_classes = Classes::size;

  terse::detail::CacheState<L, Classes, MirroredMemory> cache{};
  CacheBuffers buffers{};
  std::size_t state_bytes = 0;        // of the device
  StepTables tables{};                // in the mirror
  HostArray<Journal> journals;        // one: its address must outlast moves
  HostArray<bool> seen;               // [sequence]: scratch
  HostArray<SequenceRecord> records;  // [sequence]: the device's, where they are read back
  bool must_verify = false;  // a graph has done, or is to do, appends of the step in progress

  [[nodiscard]] Journal& journal() noexcept { return journals[0]; }

  /// A table's place on the device.
  template <class T>
  [[nodiscard]] T* on_device(T* table) const noexcept {
    return reinterpret_cast<T*>(buffers.state.data() +
                                (reinterpret_cast<std::byte*>(table) - buffers.mirror.data()));
  }
  /// A slot as kernels see it.
  template <class Store>
  [[nodiscard]] auto view(const Store& store, int slot) const noexcept {
    return rebase(store.ref(slot), {buffers.pages, buffers.tails, buffers.mirror},
                  {buffers.pages, buffers.tails, buffers.state});
  }
  [[nodiscard]] StepView step_view() const noexcept {
    return {on_device(tables.num_parts), on_device(tables.parts), on_device(tables.first_rows)};
  }
  [[nodiscard]] FailureTables failure_tables() const noexcept {
    FailureTables result{};
    result.sequences = on_device(cache.sequences);
    result.truncations = on_device(tables.truncations);
    result.failures = on_device(tables.failures);
    cache.for_each_store([&](const auto& store) {
      const int k = result.num_classes++;
      result.class_grids[k] = on_device(store.base.grids);
      result.class_appended[k] = on_device(store.base.appended);
      result.class_slots[k] = store.shape.slots;
    });
    return result;
  }

  /// Runs bookkeeping and sends what it changed.
  template <class F>
  auto change(cudaStream_t stream, F&& f) noexcept -> decltype(f()) {
    if (Status s = journal().status(); !s.ok()) return s;
    if (Status s = refuse_capture(stream); !s.ok()) return s;
    journal().begin(stream);
    auto result = f();
    journal().send();
    if (Status s = journal().status(); !s.ok()) return s;
    return result;
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
