/// `cuda::KVCache<Layout, Policy>`: a cache whose bytes lie on the device.
///
/// Bookkeeping runs on the host, with the code of terse::KVCache, over a mirror of the tables; what
/// it changes follows in the order of a stream (cache/journal.cuh). Keys and values are written by
/// kernels (append/append_kernel.cuh). This header is the interface; what its functions do lies in
/// cache/, on DeviceState. Stored bytes are those that terse::KVCache would have
/// stored, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <tuple>
#include <utility>

#include "terse/cache/lend.hpp"
#include "terse/cache/memory_usage.hpp"
#include "terse/config.hpp"
#include "terse/cuda/cache/compact.cuh"
#include "terse/cuda/cache/create.cuh"
#include "terse/cuda/cache/device_state.cuh"
#include "terse/cuda/cache/encode_ahead.cuh"
#include "terse/cuda/cache/evict.cuh"
#include "terse/cuda/cache/load.cuh"
#include "terse/cuda/cache/observe.cuh"
#include "terse/cuda/cache/save.cuh"
#include "terse/cuda/cache/sequences.cuh"
#include "terse/cuda/cache/steps.cuh"
#include "terse/cuda/cache/transfer.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// terse::KVCache on the device: the same operations and results. Those that the device takes part
/// in take a stream and do their work in its order; none allocates or waits, unless its text says
/// so. Calls of one cache are to be ordered, be it by one stream for all.
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
    return detail::plan_device_cache<State>(config, policies);
  }

  /// An empty cache over `buffers`, which must outlive it. A calibration's numbers
  /// (PolicyConfig::calibration) are device memory, which append, attend, compact and export_plain
  /// read; its list of slots is the host's. Waits for `stream`.
  [[nodiscard]] static Expected<KVCache> create(const CacheConfig& config,
                                                const CacheBuffers& buffers, cudaStream_t stream,
                                                const Configs& policies = {}) {
    KVCache cache;
    if (Status s = detail::create(cache.state_, config, buffers, stream, policies); !s.ok()) {
      return s;
    }
    return Expected<KVCache>(std::move(cache));
  }

  /// A cache that goes on from the buffers of a terse::KVCache of the same configuration, which are
  /// copied: prefill there, go on here. A calibration of the same identity has its numbers in
  /// device memory. Errors of terse::KVCache::attach; unsupported where pages are the engine's, in
  /// whose memory they need not have the same places. Waits.
  [[nodiscard]] static Expected<KVCache> create_from(const CacheConfig& config, const Buffers& host,
                                                     const CacheBuffers& buffers,
                                                     cudaStream_t stream,
                                                     const Configs& policies = {}) {
    KVCache cache;
    if (Status s = detail::create_from(cache.state_, config, host, buffers, stream, policies);
        !s.ok()) {
      return s;
    }
    return Expected<KVCache>(std::move(cache));
  }

  /// Copies everything to buffers of `memory_plan()`'s sizes, from which terse::KVCache::attach
  /// goes on. Not inside a step; wrong_phase if a living sequence has failed and was not recovered,
  /// unsupported as create_from. Waits.
  Status copy_to(const Buffers& host, cudaStream_t stream) noexcept {
    return state_.change(stream, [&] { return detail::copy_to_host(state_, host, stream); });
  }

  [[nodiscard]] const CacheConfig& config() const noexcept { return state_.cache.config; }
  /// As a cache of the host would have: shapes and bits. Buffers have the sizes of `plan`.
  [[nodiscard]] const MemoryPlan& memory_plan() const noexcept { return state_.cache.plan; }
  /// Precondition: 0 <= layer < num_layers.
  [[nodiscard]] LayerPlace place(int layer) const noexcept { return state_.cache.places[layer]; }

  // --- sequences -----------------------------------------------------------------------------

  [[nodiscard]] Expected<SequenceId> create_sequence(cudaStream_t stream) noexcept {
    return state_.change(stream, [&] { return detail::create_sequence_on_device(state_); });
  }
  Status release(SequenceId sequence, cudaStream_t stream) noexcept {
    return state_.change(stream,
                         [&] { return terse::detail::release_sequence(state_.cache, sequence); });
  }
  /// Committed tokens as the host knows them.
  [[nodiscard]] Expected<std::int64_t> length(SequenceId sequence) const noexcept {
    if (Status s = state_.cache.check(sequence); !s.ok()) return s;
    return std::int64_t{state_.cache.sequences[sequence.index].length_tokens};
  }
  /// As terse::KVCache::fork. A failed sequence's twin has failed too.
  [[nodiscard]] Expected<SequenceId> fork(SequenceId source, cudaStream_t stream) noexcept {
    return state_.change(stream, [&] { return detail::fork_sequence_on_device(state_, source); });
  }
  /// As terse::KVCache::truncate. A sequence that has failed unnoticed can only be released after
  /// it.
  Status truncate(SequenceId sequence, std::int64_t length_tokens, cudaStream_t stream) noexcept {
    return state_.change(stream, [&] {
      return detail::truncate_sequence_on_device(state_, sequence, length_tokens);
    });
  }

  /// ok, or what the device found about a sequence: `not_finite`; `invalid_argument`, a source row
  /// that is none or a table of turns (AppendInputs::rope) that ends before a position;
  /// `wrong_phase`, where a graph was replayed outside its step or did not serve all of it;
  /// `corrupt_data`, where tables were not those of the step. Detail: a layer. Then the sequence
  /// has been taken back to the end of the last step before that one (before that observe, if it
  /// was one) and is usable again, bit for bit as it was. If it was truncated since, it cannot be:
  /// `stale_sequence`, release it. Waits for `stream`; not inside a step.
  Status recover(SequenceId sequence, cudaStream_t stream) noexcept {
    return state_.change(stream,
                         [&] { return detail::recover_sequence(state_, sequence, stream); });
  }

  // --- steps ---------------------------------------------------------------------------------

  Status begin_step(Span<const StepPart> parts, cudaStream_t stream) noexcept {
    return state_.change(stream, [&] { return detail::begin_step_on_device(state_, parts); });
  }

  /// Stores the step's keys and values of a layer, which lie in device memory, as source rows do,
  /// and must stay as they are until the stream has passed: one launch. Once per slot and step.
  /// Numbers that are none, and source rows that are none of the tensors', are found by the device
  /// (see `recover`).
  Status append(int layer, const AppendInputs& inputs, cudaStream_t stream) noexcept {
    return detail::append(state_, layer, inputs, stream);
  }

  /// As terse::KVCache::encode_ahead: one launch, in any stream that waits for the layer's append
  /// and that the next change of the cache waits for, so that it may run beside the rest of a step.
  Status encode_ahead(int layer, cudaStream_t stream) noexcept {
    return detail::encode_layer_ahead(state_, layer, stream);
  }

  /// Tells that a replayed graph, launched by now in the stream of commit_step, does those appends
  /// of the step in progress that were not called.
  Status appended_by_graph() noexcept {
    if (!state_.cache.in_step) return terse::detail::outside_step();
    state_.must_verify = true;
    detail::mark_all_slots(state_);
    return {};
  }

  /// As terse::KVCache::commit_step. After a graph one more launch looks whether all slots were
  /// appended to.
  Status commit_step(Span<const int> accepted_tokens, cudaStream_t stream) noexcept {
    return state_.change(
        stream, [&] { return detail::commit_step_on_device(state_, accepted_tokens, stream); });
  }
  Status commit_step(cudaStream_t stream) noexcept { return commit_step({}, stream); }

  Status abandon_step(cudaStream_t stream) noexcept {
    return state_.change(stream, [&] { return detail::abandon_step_on_device(state_); });
  }

  // --- eviction ------------------------------------------------------------------------------

  /// Floats of column sums of one part: `[unit, entry, 64]` of the layer's slot. Precondition:
  /// 0 <= layer < num_layers.
  [[nodiscard]] std::size_t column_sum_floats(int layer) const noexcept {
    return terse::detail::column_sum_floats(memory_plan().classes[place(layer).policy_class].shape);
  }

  /// As terse::KVCache::observe, of `column_sums [part, unit, entry, 64]` in device memory: two
  /// launches. A sequence that would be fed NaN or infinity has failed, and is fed nothing; parts
  /// of 0 tokens, for which attend writes no sums, are left out.
  Status observe(int layer, Span<const StepPart> parts, Span<const float> column_sums,
                 cudaStream_t stream) noexcept {
    return state_.change(stream, [&] {
      return detail::observe_on_device(state_, layer, parts, column_sums, stream);
    });
  }

  /// As terse::KVCache::evict, for any number of sequences at once: the evictor's select runs on
  /// the device (terse/policy/evictor.hpp says what that asks of it). If one of the sequences has
  /// failed, wrong_phase, and nothing happens. Waits for `stream`, twice: call it every so many
  /// steps, for all sequences that are due.
  [[nodiscard]] Expected<std::int64_t> evict(Span<const SequenceId> sequences, int incoming_tokens,
                                             cudaStream_t stream) noexcept {
    return state_.change(stream, [&] {
      return detail::evict_on_device(state_, sequences, incoming_tokens, stream);
    });
  }
  [[nodiscard]] Expected<std::int64_t> evict(SequenceId sequence, int incoming_tokens,
                                             cudaStream_t stream) noexcept {
    return evict(Span<const SequenceId>(&sequence, 1), incoming_tokens, stream);
  }

  /// As terse::KVCache::plan_compact.
  [[nodiscard]] Expected<CompactPlan> plan_compact(SequenceId sequence) const noexcept {
    return terse::detail::plan_compact(state_.cache, sequence);
  }

  /// As terse::KVCache::compact, and with its errors: would_be_lossy, no_free_pages,
  /// stale_sequence, wrong_phase inside a step. Also wrong_phase if the sequence has failed, and
  /// unsupported if the device has too little shared memory for a block. Nothing has changed then.
  /// Waits for what is in `stream` before it begins; then a launch for every 128 lists of entries,
  /// more where pages are scarce or, for each slot, where a calibrated codec encodes again, and
  /// those of the tables, whose copies wait too if the mirror is not pinned.
  Expected<CompactPlan> compact(SequenceId sequence, cudaStream_t stream,
                                bool allow_reencoding = false) noexcept {
    return state_.change(stream, [&] {
      return detail::compact_on_device(state_, sequence, allow_reencoding, stream);
    });
  }

  // --- memory --------------------------------------------------------------------------------

  /// Of the device: the mirror is not counted.
  [[nodiscard]] MemoryUsage memory_usage() const noexcept {
    MemoryUsage usage = terse::detail::memory_usage(state_.cache);
    usage.state_bytes = state_.state_bytes;
    return usage;
  }
  /// As terse::KVCache; no byte of the device changes. Pages change hands in the order of the
  /// stream: lent ones must be idle there, and work that was queued before may still read those
  /// taken back.
  Status lend_pages(Span<const std::int32_t> pages, int policy_class = 0) noexcept {
    return terse::detail::lend_pages(state_.cache, policy_class, pages);
  }
  [[nodiscard]] Expected<std::int64_t> take_back_pages(Span<std::int32_t> pages,
                                                       int policy_class = 0) noexcept {
    return terse::detail::take_back_pages(state_.cache, policy_class, pages);
  }

  // --- saving --------------------------------------------------------------------------------

  /// Bytes that save writes for a sequence, exactly. stale_sequence, wrong_phase inside a step.
  [[nodiscard]] Expected<std::size_t> saved_bytes(SequenceId sequence) const noexcept {
    return terse::detail::saved_bytes(state_.cache, sequence);
  }

  /// As terse::KVCache::save, and the same bytes: either processor loads what the other has saved.
  /// `out`: host memory, pinned or not. stale_sequence, wrong_phase inside a step or if the
  /// sequence has failed, buffer_too_small, device_error. Waits for `stream`.
  Status save(SequenceId sequence, std::uint64_t model_fingerprint, Span<std::byte> out,
              cudaStream_t stream) noexcept {
    return state_.change(stream, [&] {
      return detail::save_on_device(state_, sequence, model_fingerprint, out, stream);
    });
  }

  /// As terse::KVCache::load. `in`: host memory, not needed any longer when it returns.
  /// wrong_phase inside a step, corrupt_data, mismatch, too_many_tokens, no_free_pages,
  /// too_many_sequences: nothing has changed then. After a device_error half-way the cache has to
  /// be created anew. Waits for `stream`.
  [[nodiscard]] Expected<SequenceId> load(Span<const std::byte> in, std::uint64_t model_fingerprint,
                                          cudaStream_t stream) noexcept {
    return state_.change(
        stream, [&] { return detail::load_on_device(state_, in, model_fingerprint, stream); });
  }

  // --- views ---------------------------------------------------------------------------------

  /// The view of a layer that attend takes. A projector's factors and calibrations are those given
  /// to create: for attend, device memory. Precondition: 0 <= i < num_layers.
  [[nodiscard]] Ref<0> layer(int i) const noexcept requires(num_classes == 1) {
    return state_.view(std::get<0>(state_.cache.stores), place(i).slot);
  }
  /// Calls `Status f(view)` with the view of layer `i`, whose type depends on its policy class.
  template <class F>
  Status visit_layer(int i, F&& f) const {
    if (Status s = state_.cache.check_layer(i); !s.ok()) return s;
    Status status{};
    state_.cache.with_store(place(i).policy_class, [&](const auto& store) {
      status = f(state_.view(store, place(i).slot));
    });
    return status;
  }

 private:
  using State = detail::DeviceState<L, Classes>;

  KVCache() = default;

  State state_{};
};

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
