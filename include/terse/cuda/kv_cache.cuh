/// `cuda::KVCache<Layout, Policy>`: a cache whose bytes lie on the device.
///
/// Bookkeeping runs on the host, with the code of terse::KVCache, over a mirror of the tables; what
/// it changes follows in the order of a stream (cache/journal.cuh). Keys and values are written by
/// kernels (append/append_kernel.cuh). Stored bytes are those that terse::KVCache would have
/// stored, bit for bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <tuple>
#include <type_traits>
#include <utility>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/create.hpp"
#include "terse/cache/lend.hpp"
#include "terse/cache/memory_usage.hpp"
#include "terse/cache/sequences.hpp"
#include "terse/cache/steps.hpp"
#include "terse/config.hpp"
#include "terse/core/host_array.hpp"
#include "terse/cuda/append.cuh"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/cache/journal.cuh"
#include "terse/cuda/cache/step_record.cuh"
#include "terse/cuda/cache/verify_step.cuh"
#include "terse/cuda/device_ref.cuh"

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

/// Memory that the caller lends for the life of the cache, each 128-byte aligned.
struct CacheBuffers {
  Span<std::byte> pages;   ///< device
  Span<std::byte> tails;   ///< device
  Span<std::byte> state;   ///< device
  Span<std::byte> mirror;  ///< host, pinned or not
};

/// terse::KVCache on the device: the same operations and results. Each takes a stream and does its
/// work in that stream's order; it neither allocates nor waits, unless its text says so. Calls of
/// one cache are to be ordered, be it by one stream for all.
///
/// What the host can see is refused as on the host. What only the device can see (a NaN among keys
/// or values) makes the sequence *failed* there: the device leaves its bytes alone and attention
/// gives zeros, until `recover` has told the host and taken the sequence back to the step before.
///
/// Graphs: append and attend may be captured, and replayed in later steps of at most as many parts,
/// tokens in a part and rows; begin_step, commit_step and the others may not (wrong_phase).
/// Sequences that a replay leaves without their tokens have failed.
template <Layout L, class Policy>
class KVCache {
 public:
  using Classes = ScheduleOf<Policy>;
  static constexpr int num_classes = Classes::size;
  static_assert(num_classes <= max_policy_classes,
                "terse::cuda::KVCache: a Schedule holds at most 8 policy classes.");
  template <std::size_t I>
  using PolicyAt = typename Classes::template At<I>;
  template <std::size_t I>
  using Ref = KVCacheRef<L, PolicyAt<I>>;
  using Configs = typename Classes::Configs;

  /// Exact buffer sizes for a configuration, or what is wrong with it.
  [[nodiscard]] static Expected<CachePlan> plan(const CacheConfig& config,
                                                const Configs& policies = {}) {
    const Expected<MemoryPlan> planned = terse::detail::plan_cache<State>(config, policies);
    if (!planned.ok()) return planned.status();
    if (Status s = check_shapes(*planned, std::make_index_sequence<num_classes>{}); !s.ok()) {
      return s;
    }
    CachePlan result;
    result.host = *planned;
    result.pages_bytes = planned->pages_bytes;
    result.tails_bytes = planned->tails_bytes;
    detail::StepTables tables;
    terse::detail::Carver carver;
    carver.take<std::byte>(planned->state_bytes);
    tables.carve(carver, config.max_sequences);
    result.state_bytes = result.mirror_bytes = carver.used_bytes();
    return result;
  }

  /// An empty cache over `buffers`, which must outlive it. Waits for `stream`.
  [[nodiscard]] static Expected<KVCache> create(const CacheConfig& config,
                                                const CacheBuffers& buffers, cudaStream_t stream,
                                                const Configs& policies = {}) {
    const Expected<CachePlan> planned = plan(config, policies);
    if (!planned.ok()) return planned.status();
    if (Status s = refuse_capture(stream); !s.ok()) return s;
    KVCache cache;
    if (Status s = terse::detail::check_buffer(buffers.state, planned->state_bytes); !s.ok()) {
      return s;
    }
    if (Status s = terse::detail::check_buffer(buffers.mirror, planned->mirror_bytes); !s.ok()) {
      return s;
    }
    const Buffers mirrored{buffers.pages, buffers.tails, buffers.mirror};
    if (Status s = terse::detail::bind_buffers(cache.state_, config, mirrored, policies); !s.ok()) {
      return s;
    }
    cache.journal_ = HostArray<detail::Journal>(1);
    if (cache.journal_.data() == nullptr) {
      return error(StatusCode::unsupported, "terse::cuda::KVCache: out of host memory");
    }
    cache.buffers_ = buffers;
    cache.state_bytes_ = planned->state_bytes;
    terse::detail::Carver carver(buffers.mirror.data());
    carver.take<std::byte>(planned->host.state_bytes);
    cache.tables_.carve(carver, config.max_sequences);
    if (Status s = cache.start(*planned, stream); !s.ok()) return s;
    return Expected<KVCache>(std::move(cache));
  }

  [[nodiscard]] const CacheConfig& config() const noexcept { return state_.config; }
  /// As a cache of the host would have: shapes and bits. Buffers have the sizes of `plan`.
  [[nodiscard]] const MemoryPlan& memory_plan() const noexcept { return state_.plan; }
  /// Precondition: 0 <= layer < num_layers.
  [[nodiscard]] LayerPlace place(int layer) const noexcept { return state_.places[layer]; }

  // --- sequences -----------------------------------------------------------------------------

  [[nodiscard]] Expected<SequenceId> create_sequence(cudaStream_t stream) noexcept {
    return change(stream, [&]() -> Expected<SequenceId> {
      Expected<SequenceId> id = terse::detail::create_sequence(state_);
      if (id.ok()) state_.memory.set(tables_.truncations[id->index], 0);
      return id;
    });
  }
  Status release(SequenceId sequence, cudaStream_t stream) noexcept {
    return change(stream, [&] { return terse::detail::release_sequence(state_, sequence); });
  }
  /// Committed tokens as the host knows them.
  [[nodiscard]] Expected<std::int64_t> length(SequenceId sequence) const noexcept {
    if (Status s = state_.check(sequence); !s.ok()) return s;
    return std::int64_t{state_.sequences[sequence.index].length_tokens};
  }
  /// As terse::KVCache::fork. A failed sequence's twin has failed too.
  [[nodiscard]] Expected<SequenceId> fork(SequenceId source, cudaStream_t stream) noexcept {
    return change(stream, [&]() -> Expected<SequenceId> {
      Expected<SequenceId> twin = terse::detail::fork_sequence(state_, source);
      if (!twin.ok()) return twin;
      state_.memory.set(tables_.truncations[twin->index], tables_.truncations[source.index]);
      journal_[0].copy_table(&state_.sequences[twin->index].failed,
                             &state_.sequences[source.index].failed, sizeof(std::int32_t));
      journal_[0].copy_table(tables_.failures + twin->index, tables_.failures + source.index,
                             sizeof(detail::SequenceFailure));
      return twin;
    });
  }
  /// As terse::KVCache::truncate. A sequence that has failed unnoticed can only be released after
  /// it.
  Status truncate(SequenceId sequence, std::int64_t length_tokens, cudaStream_t stream) noexcept {
    return change(stream, [&] {
      const Expected<std::int64_t> before = length(sequence);
      Status s = terse::detail::truncate_sequence(state_, sequence, length_tokens);
      if (s.ok() && *before != length_tokens) {
        std::int32_t& count = tables_.truncations[sequence.index];
        state_.memory.set(count, count + 1);
      }
      return s;
    });
  }

  /// ok, or what the device found about a sequence: `not_finite`; `wrong_phase`, where a graph was
  /// replayed outside its step or did not serve all of it; `corrupt_data`, where tables were not
  /// those of the step. Detail: a layer. Then the sequence has been taken back to the end of the
  /// last step before that one and is usable again, bit for bit as it was. If it was truncated
  /// since, it cannot be: `stale_sequence`, release it. Waits for `stream`; not inside a step.
  Status recover(SequenceId sequence, cudaStream_t stream) noexcept {
    return change(stream, [&] { return recover_sequence(sequence, stream); });
  }

  // --- steps ---------------------------------------------------------------------------------

  Status begin_step(Span<const StepPart> parts, cudaStream_t stream) noexcept {
    return change(stream, [&] {
      std::int64_t rows = 0;
      for (const StepPart& part : parts) rows += part.tokens > 0 ? part.tokens : 0;
      if (rows > 0x7fffffff) {
        return error(StatusCode::too_many_tokens,
                     "terse::cuda::KVCache::begin_step: a step is limited to 2^31 - 1 rows", rows);
      }
      if (Status s = terse::detail::begin_step(state_, parts); !s.ok()) return s;
      must_verify_ = false;
      std::int32_t row = 0;
      for (int i = 0; i < state_.num_parts; ++i) {
        const StepPart& part = state_.parts[i];
        replace(tables_.parts[i].sequence.index, part.sequence.index);
        replace(tables_.parts[i].sequence.generation, part.sequence.generation);
        replace(tables_.parts[i].tokens, part.tokens);
        replace(tables_.first_rows[i], row);
        row += part.tokens;
      }
      replace(*tables_.num_parts, state_.num_parts);
      return Status{};
    });
  }

  /// Stores the step's keys and values of a layer, which lie in device memory and must stay as they
  /// are until the stream has passed: one launch. Once per slot and step. Numbers that are none are
  /// found by the device (see `recover`).
  Status append(int layer, const AppendInputs& inputs, cudaStream_t stream) noexcept {
    if (!state_.in_step) return terse::detail::outside_step();
    if (Status s = journal_[0].status(); !s.ok()) return s;
    if (Status s = state_.check_layer(layer); !s.ok()) return s;
    const LayerPlace at = place(layer);
    const int slot = state_.slot_base[at.policy_class] + at.slot;
    if (state_.slot_written[slot]) {
      return error(StatusCode::already_appended,
                   "terse::cuda::KVCache::append: this step's tokens are already in the layer's "
                   "slot",
                   at.slot);
    }
    bool is_capturing = false;
    if (Status s = find_capture(stream, &is_capturing); !s.ok()) return s;
    must_verify_ = must_verify_ || is_capturing;
    Status status{};
    state_.with_store(at.policy_class, [&](auto& store) {
      status = launch_append(store, at.slot, slot, inputs, stream);
      if (status.ok()) mark(store, at.slot);
    });
    state_.slot_written[slot] = status.ok();
    return status;
  }

  /// Tells that a replayed graph, launched by now in the stream of commit_step, does those appends
  /// of the step in progress that were not called.
  Status appended_by_graph() noexcept {
    if (!state_.in_step) return terse::detail::outside_step();
    must_verify_ = true;
    mark_all();
    return {};
  }

  /// As terse::KVCache::commit_step. After a graph one more launch looks whether all slots were
  /// appended to.
  Status commit_step(Span<const int> accepted_tokens, cudaStream_t stream) noexcept {
    return change(stream, [&] {
      if (!state_.in_step) return terse::detail::outside_step();
      if (Status s = terse::detail::check_commit(state_, accepted_tokens); !s.ok()) return s;
      if (must_verify_) {
        if (Status s = launch_verify(stream); !s.ok()) return s;
      }
      return terse::detail::commit_step(state_, accepted_tokens);
    });
  }
  Status commit_step(cudaStream_t stream) noexcept { return commit_step({}, stream); }

  Status abandon_step(cudaStream_t stream) noexcept {
    return change(stream, [&] {
      if (!state_.in_step) return terse::detail::outside_step();
      mark_all();  // a graph may have been launched without the host being told
      return terse::detail::abandon_step(state_);
    });
  }

  /// The step in progress as kernels see it.
  [[nodiscard]] StepView step_view() const noexcept {
    return {on_device(tables_.num_parts), on_device(tables_.parts), on_device(tables_.first_rows)};
  }

  // --- memory --------------------------------------------------------------------------------

  /// Of the device: the mirror is not counted.
  [[nodiscard]] MemoryUsage memory_usage() const noexcept {
    MemoryUsage usage = terse::detail::memory_usage(state_);
    usage.state_bytes = state_bytes_;
    return usage;
  }
  /// As terse::KVCache; no byte of the device changes. Pages change hands in the order of the
  /// stream: lent ones must be idle there, and work that was queued before may still read those
  /// taken back.
  Status lend_pages(Span<const std::int32_t> pages, int policy_class = 0) noexcept {
    return terse::detail::lend_pages(state_, policy_class, pages);
  }
  [[nodiscard]] Expected<std::int64_t> take_back_pages(Span<std::int32_t> pages,
                                                       int policy_class = 0) noexcept {
    return terse::detail::take_back_pages(state_, policy_class, pages);
  }

  // --- views ---------------------------------------------------------------------------------

  /// The view of a layer that attend takes: its pointers are the device's, but for a projector's
  /// factors. Precondition:
  /// 0 <= i < num_layers.
  [[nodiscard]] Ref<0> layer(int i) const noexcept requires(num_classes == 1) {
    return device_view(std::get<0>(state_.stores), place(i).slot);
  }
  /// Calls `Status f(view)` with the view of layer `i`, whose type depends on its policy class.
  template <class F>
  Status visit_layer(int i, F&& f) const {
    if (Status s = state_.check_layer(i); !s.ok()) return s;
    Status status{};
    state_.with_store(place(i).policy_class,
                      [&](const auto& store) { status = f(device_view(store, place(i).slot)); });
    return status;
  }

 private:
  using State = terse::detail::CacheState<L, Classes, detail::MirroredMemory>;

  KVCache() = default;

  /// First bytes of a device cache's tables: what lies there is no host cache, whose attach refuses
  /// it, because the pool's tables are the mirror's alone.
  static constexpr std::uint64_t device_magic = 0x3130564454535254ull;  // "TRSTDV01"

  template <std::size_t... I>
  [[nodiscard]] static Status check_shapes(const MemoryPlan& plan, std::index_sequence<I...>) {
    Status status{};
    ((status = status.ok() ? check_append<Ref<I>>(plan.classes[I].shape) : status), ...);
    return status;
  }

  [[nodiscard]] static Status find_capture(cudaStream_t stream, bool* is_capturing) noexcept {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    const Status s = to_status(cudaStreamIsCapturing(stream, &capture),
                               "terse::cuda::KVCache: the stream cannot be used");
    *is_capturing = capture != cudaStreamCaptureStatusNone;
    return s;
  }
  [[nodiscard]] static Status refuse_capture(cudaStream_t stream) noexcept {
    bool is_capturing = false;
    if (Status s = find_capture(stream, &is_capturing); !s.ok()) return s;
    if (!is_capturing) return {};
    return error(StatusCode::wrong_phase,
                 "terse::cuda::KVCache: this call cannot be captured, its replay would bring back "
                 "old tables; only append and attend can");
  }

  /// Empties the cache and brings the device up to it.
  Status start(const CachePlan& plan, cudaStream_t stream) noexcept {
    terse::detail::reset(state_);
    state_.state_record->magic = device_magic;
    *tables_.num_parts = 0;
    for (int i = 0; i < state_.config.max_sequences; ++i) {
      tables_.parts[i] = {};
      tables_.first_rows[i] = tables_.truncations[i] = 0;
      tables_.failures[i] = {};
    }
    constexpr const char* text = "terse::cuda::KVCache: cannot write to the buffers";
    if (plan.tails_bytes > 0) {
      if (Status s =
              to_status(cudaMemsetAsync(buffers_.tails.data(), 0, plan.tails_bytes, stream), text);
          !s.ok()) {
        return s;
      }
    }
    if (Status s = to_status(cudaMemcpyAsync(buffers_.state.data(), buffers_.mirror.data(),
                                             plan.state_bytes, cudaMemcpyHostToDevice, stream),
                             text);
        !s.ok()) {
      return s;
    }
    if (Status s = to_status(cudaStreamSynchronize(stream), text); !s.ok()) return s;
    journal_[0].bind(buffers_.mirror.data(), buffers_.state.data());
    state_.memory.journal = journal_.data();
    state_.for_each_store([&](auto& store) { store.memory = state_.memory; });
    return {};
  }

  /// Runs bookkeeping and sends what it changed.
  template <class F>
  auto change(cudaStream_t stream, F&& f) noexcept -> decltype(f()) {
    detail::Journal& journal = journal_[0];
    if (Status s = journal.status(); !s.ok()) return s;
    if (Status s = refuse_capture(stream); !s.ok()) return s;
    journal.begin(stream);
    auto result = f();
    journal.send();
    if (Status s = journal.status(); !s.ok()) return s;
    return result;
  }

  template <class T>
  void replace(T& place, T value) noexcept {
    if (place != value) state_.memory.set(place, value);
  }

  template <class T>
  [[nodiscard]] T* on_device(T* table) const noexcept {
    return reinterpret_cast<T*>(buffers_.state.data() +
                                (reinterpret_cast<std::byte*>(table) - buffers_.mirror.data()));
  }

  template <class Store>
  [[nodiscard]] auto device_view(const Store& store, int slot) const noexcept {
    return rebase(store.ref(slot), {buffers_.pages, buffers_.tails, buffers_.mirror},
                  {buffers_.pages, buffers_.tails, buffers_.state});
  }

  template <class Store>
  Status launch_append(const Store& store, int slot, int slot_of_all, const AppendInputs& inputs,
                       cudaStream_t stream) const noexcept {
    using R = typename Store::Ref;
    detail::AppendCall<R> call{};
    call.r = device_view(store, slot);
    call.in = inputs;
    call.step = step_view();
    call.failure = failure_tables();
    call.slot = slot_of_all;
    call.num_parts = state_.num_parts;
    for (int i = 0; i < state_.num_parts; ++i) {
      call.num_rows += state_.parts[i].tokens;
      call.most_tokens = std::max(call.most_tokens, state_.parts[i].tokens);
    }
    return append_on_device(call, stream);
  }

  [[nodiscard]] detail::FailureTables failure_tables() const noexcept {
    detail::FailureTables tables{};
    tables.sequences = on_device(state_.sequences);
    tables.truncations = on_device(tables_.truncations);
    tables.failures = on_device(tables_.failures);
    state_.for_each_store([&](const auto& store) {
      const int k = tables.num_classes++;
      tables.class_grids[k] = on_device(store.base.grids);
      tables.class_appended[k] = on_device(store.base.appended);
      tables.class_slots[k] = store.shape.slots;
    });
    return tables;
  }

  Status launch_verify(cudaStream_t stream) const noexcept {
    constexpr int threads = 128;
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(static_cast<unsigned>(ceil_div(state_.num_parts, threads)));
    launch.blockDim = dim3(threads);
    launch.stream = stream;
    return to_status(
        cudaLaunchKernelEx(&launch, detail::verify_step<threads>, step_view(), failure_tables()),
        "terse::cuda::KVCache::commit_step: a launch failed");
  }

  /// The mirror's half of an append.
  template <class Store>
  void mark(const Store& store, int slot) noexcept {
    const auto r = store.ref(slot);
    for (int i = 0; i < state_.num_parts; ++i) {
      const int sequence = state_.parts[i].sequence.index;
      terse::detail::mark_appended(store, r, sequence, state_.sequences[sequence].length_tokens,
                                   state_.parts[i].tokens);
    }
  }

  void mark_all() noexcept {
    int slot = 0;
    state_.for_each_store([&](auto& store) {
      for (int s = 0; s < store.shape.slots; ++s, ++slot) {
        if (!state_.slot_written[slot]) mark(store, s);
        state_.slot_written[slot] = true;
      }
    });
  }

  /// A layer whose keys and values lie in a slot, counted over all classes.
  [[nodiscard]] int layer_of_slot(int slot) const noexcept {
    int layer = 0;
    while (layer + 1 < state_.config.num_layers &&
           state_.slot_base[place(layer).policy_class] + place(layer).slot != slot) {
      ++layer;
    }
    return layer;
  }

  /// Reads one table entry of the device. Waits.
  template <class T>
  Status read(T* table, T* value, cudaStream_t stream) const noexcept {
    constexpr const char* text = "terse::cuda::KVCache::recover: the device cannot be read";
    if (Status s = to_status(
            cudaMemcpyAsync(value, on_device(table), sizeof *value, cudaMemcpyDeviceToHost, stream),
            text);
        !s.ok()) {
      return s;
    }
    return to_status(cudaStreamSynchronize(stream), text);
  }

  Status recover_sequence(SequenceId sequence, cudaStream_t stream) noexcept {
    if (Status s = state_.check_idle(sequence); !s.ok()) return s;
    SequenceRecord& record = state_.sequences[sequence.index];
    std::int32_t failed = 0;
    if (Status s = read(&record.failed, &failed, stream); !s.ok()) return s;
    if (failed == 0) return {};
    detail::SequenceFailure failure{};
    if (Status s = read(tables_.failures + sequence.index, &failure, stream); !s.ok()) return s;
    if (failure.truncations != tables_.truncations[sequence.index]) {
      return error(StatusCode::stale_sequence,
                   "terse::cuda::KVCache::recover: an append to this sequence failed on the device "
                   "and the sequence was truncated since: release it",
                   sequence.index);
    }
    if (failure.length_tokens < 0 || failure.length_tokens > record.length_tokens) {
      return error(StatusCode::device_error,
                   "terse::cuda::KVCache::recover: the device's tables have been overwritten",
                   failure.length_tokens);
    }
    // From then on the device has written nothing: the tail is as it was in that step.
    int k = 0;
    state_.for_each_store([&](auto& store) {
      store.base.grids[sequence.index].exact_begin = failure.exact_begin[k++];
      terse::detail::shrink(store, sequence.index, failure.length_tokens);
    });
    state_.memory.set(record.length_tokens, failure.length_tokens);
    state_.memory.wrote(&record.failed);  // zero in the mirror
    const auto code = static_cast<StatusCode>(failed);
    const int layer = layer_of_slot(failure.slot);
    if (code == StatusCode::not_finite) {
      return error(code,
                   "terse::cuda::KVCache: an input of append held NaN or infinity; the sequence is "
                   "as before that step; detail: the layer",
                   layer);
    }
    return error(
        code,
        "terse::cuda::KVCache: an append was not that of its step, by a graph that was "
        "replayed outside it or serves less; the sequence is as before it; detail: a layer",
        layer);
  }

  State state_{};
  CacheBuffers buffers_{};
  std::size_t state_bytes_ = 0;  // of the device
  detail::StepTables tables_{};  // in the mirror
  HostArray<detail::Journal> journal_;
  bool must_verify_ = false;  // a graph has done, or is to do, appends of the step in progress
};

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
