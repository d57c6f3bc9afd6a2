/// `KVCache<Layout, Policy>`: the host-side owner of one model's bookkeeping.
///
/// This header is the interface. What its functions do lies beside it, one subject a file: plans
/// and buffers in create.hpp, sequences in sequences.hpp, steps in steps.hpp, and so on. Those
/// work on CacheState, and through it on one ClassStore per policy class.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/compact.hpp"
#include "terse/cache/create.hpp"
#include "terse/cache/encode_ahead.hpp"
#include "terse/cache/evict.hpp"
#include "terse/cache/lend.hpp"
#include "terse/cache/load.hpp"
#include "terse/cache/memory_usage.hpp"
#include "terse/cache/observe.hpp"
#include "terse/cache/save.hpp"
#include "terse/cache/sequences.hpp"
#include "terse/cache/steps.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Keeps the keys and values of `num_layers` layers for up to `max_sequences` sequences.
///
/// Policy is a `Compose<...>`, a single part, or a `Schedule<P0, P1, ...>` of policy classes that
/// `CacheConfig::layers` maps layers to. The object allocates once, at creation, memory that does
/// not grow with tokens; blocks, tails and all state of sequences lie in the caller's Buffers.
///
/// A step: begin_step reserves for all layers, all or nothing; then for each layer append and
/// `attend` (terse/cpu/attend.hpp); commit_step makes the accepted tokens part of the sequences;
/// abandon_step leaves the sequences as before. A failed call changes nothing.
///
/// Threads: calls that change the cache must not overlap with any other call on it; attend on refs
/// is const and reentrant.
template <Layout L, class Policy>
class KVCache {
 public:
  using Classes = ScheduleOf<Policy>;
  static constexpr int num_classes = Classes::size;
  static_assert(num_classes <= max_policy_classes,
                "terse::KVCache: a Schedule holds at most 8 policy classes.");
  template <std::size_t I>
  using PolicyAt = typename Classes::template At<I>;
  template <std::size_t I>
  using Ref = KVCacheRef<L, PolicyAt<I>>;
  using Configs = typename Classes::Configs;  ///< tuple of PolicyConfig, one per class

  /// Exact buffer sizes for a configuration, or what is wrong with it.
  [[nodiscard]] static Expected<MemoryPlan> plan(const CacheConfig& config,
                                                 const Configs& policies = {}) {
    return detail::plan_cache<State>(config, policies);
  }

  /// ok, or why this configuration cannot be served.
  [[nodiscard]] static Status supports(const CacheConfig& config, const Configs& policies = {}) {
    return plan(config, policies).status();
  }

  /// An empty cache over `buffers`, which must outlive it.
  [[nodiscard]] static Expected<KVCache> create(const CacheConfig& config, const Buffers& buffers,
                                                const Configs& policies = {}) {
    KVCache cache;
    if (Status s = detail::bind_buffers(cache.state_, config, buffers, policies); !s.ok()) return s;
    detail::reset(cache.state_);
    return Expected<KVCache>(std::move(cache));
  }

  /// A cache that goes on from `buffers` (or a byte copy of them) as another one left them, between
  /// steps. The configuration must be that of the cache that wrote them; only budgets of evictors
  /// and factors may differ.
  [[nodiscard]] static Expected<KVCache> attach(const CacheConfig& config, const Buffers& buffers,
                                                const Configs& policies = {}) {
    KVCache cache;
    if (Status s = detail::bind_buffers(cache.state_, config, buffers, policies); !s.ok()) return s;
    if (Status s = detail::check_attached(cache.state_); !s.ok()) return s;
    return Expected<KVCache>(std::move(cache));
  }

  [[nodiscard]] const CacheConfig& config() const noexcept { return state_.config; }
  [[nodiscard]] const MemoryPlan& memory_plan() const noexcept { return state_.plan; }
  /// Precondition: 0 <= layer < num_layers.
  [[nodiscard]] LayerPlace place(int layer) const noexcept { return state_.places[layer]; }

  // --- sequences -----------------------------------------------------------------------------

  /// A new, empty sequence.
  [[nodiscard]] Expected<SequenceId> create_sequence() noexcept {
    return detail::create_sequence(state_);
  }

  /// Ends a sequence and drops its pages.
  Status release(SequenceId sequence) noexcept {
    return detail::release_sequence(state_, sequence);
  }

  /// Committed tokens of a sequence, evicted ones included.
  [[nodiscard]] Expected<std::int64_t> length(SequenceId sequence) const noexcept {
    if (Status s = state_.check(sequence); !s.ok()) return s;
    return std::int64_t{state_.sequences[sequence.index].length_tokens};
  }

  /// A second sequence with the same tokens. Sealed pages are shared (paged layouts); the open
  /// block and the tail are copied.
  [[nodiscard]] Expected<SequenceId> fork(SequenceId source) noexcept {
    return detail::fork_sequence(state_, source);
  }

  /// Drops the tokens at `length_tokens` and later; what the others decode to never changes. Open
  /// policies go on in the block that is cut. With a tail, tokens are taken back without trace as
  /// far as exact copies go; further back the sequence goes on in a new block, and the shortened
  /// one counts whole towards max_tokens until compact joins it with its neighbours.
  Status truncate(SequenceId sequence, std::int64_t length_tokens) noexcept {
    return detail::truncate_sequence(state_, sequence, length_tokens);
  }

  // --- steps ---------------------------------------------------------------------------------

  /// Begins a step: validates all parts and reserves entries and pages for all layers, or changes
  /// nothing. A sequence occurs at most once. Exact copies of sealed tokens are given up as far as
  /// the tail needs their room. An open block that a fork shares is copied.
  Status begin_step(Span<const StepPart> parts) noexcept {
    return detail::begin_step(state_, parts);
  }

  /// Stores the step's keys and values of a layer. Exactly once per slot and step.
  Status append(int layer, const AppendInputs& inputs) noexcept {
    return detail::append_to_layer(state_, layer, inputs);
  }

  /// Encodes the blocks of the step's sequences in a layer that are complete but not due yet, so
  /// that the step which seals them only copies codes: the cache's answers are the same. Inside a
  /// step, after the layer's append (wrong_phase); unsupported without PolicyConfig::encodes_ahead.
  Status encode_ahead(int layer) noexcept { return detail::encode_layer_ahead(state_, layer); }

  /// Ends the step: of part i the first `accepted_tokens[i]` tokens become part of the sequence,
  /// the others are forgotten (speculative decoding). Empty: all are accepted. Every slot must have
  /// been appended to.
  Status commit_step(Span<const int> accepted_tokens = {}) noexcept {
    return detail::commit_step(state_, accepted_tokens);
  }

  /// Ends the step without its tokens.
  Status abandon_step() noexcept { return detail::abandon_step(state_); }

  // --- eviction ------------------------------------------------------------------------------

  /// Floats of column sums of one part: `[unit, entry, 64]` of the layer's slot. Precondition:
  /// 0 <= layer < num_layers.
  [[nodiscard]] std::size_t column_sum_floats(int layer) const noexcept {
    return detail::column_sum_floats(state_.plan.classes[place(layer).policy_class].shape);
  }

  /// Feeds the evictor of a layer's slot: `column_sums [part, unit, entry, 64]` as attend wrote
  /// them for `parts`. Not inside a step, which could be abandoned: after commit_step, before the
  /// next change of the sequences. Where tokens were rejected, attend again for the accepted rows.
  Status observe(int layer, Span<const StepPart> parts, Span<const float> column_sums) noexcept {
    return detail::observe_layer(state_, layer, parts, column_sums);
  }

  /// Lets the evictor of every slot drop tokens, leaving room for `incoming_tokens` more, and
  /// returns the pages whose tokens are all dead. Gives the number of pages that became free.
  Expected<std::int64_t> evict(SequenceId sequence, int incoming_tokens = 0) noexcept {
    return detail::evict_sequence(state_, sequence, incoming_tokens);
  }

  /// What compact would need and give.
  [[nodiscard]] Expected<CompactPlan> plan_compact(SequenceId sequence) const noexcept {
    return detail::plan_compact(state_, sequence);
  }

  /// Moves the live tokens of sealed blocks together, where that saves blocks, and returns the
  /// pages won. Codes that carry their own scales move unchanged; blocks with per-channel groups
  /// are encoded again, which `allow_reencoding` must permit. If anything moves, exact copies of
  /// sealed tokens are given up.
  Expected<CompactPlan> compact(SequenceId sequence, bool allow_reencoding = false) noexcept {
    return detail::compact_sequence(state_, sequence, allow_reencoding);
  }

  [[nodiscard]] MemoryUsage memory_usage() const noexcept { return detail::memory_usage(state_); }

  // --- pages of the engine's -----------------------------------------------------------------

  /// Lends pages, as numbers of places in Buffers::pages, to a policy class that borrows its pages
  /// (PolicyConfig::borrows_pages): all of them or, if one is out of range or lent already
  /// (invalid_argument), none. Other classes own theirs (unsupported).
  Status lend_pages(Span<const std::int32_t> pages, int policy_class = 0) noexcept {
    return detail::lend_pages(state_, policy_class, pages);
  }

  /// Takes back up to `pages.size()` pages that hold no token of any sequence, those that became
  /// free last first, and writes their numbers. Gives their count; errors as lend_pages.
  [[nodiscard]] Expected<std::int64_t> take_back_pages(Span<std::int32_t> pages,
                                                       int policy_class = 0) noexcept {
    return detail::take_back_pages(state_, policy_class, pages);
  }

  // --- saving --------------------------------------------------------------------------------

  /// Bytes that save writes for a sequence, exactly.
  [[nodiscard]] Expected<std::size_t> saved_bytes(SequenceId sequence) const noexcept {
    return detail::saved_bytes(state_, sequence);
  }

  /// Writes a sequence as self-describing bytes. `model_fingerprint`: any number that names the
  /// model, checked by load.
  Status save(SequenceId sequence, std::uint64_t model_fingerprint, Span<std::byte> out) noexcept {
    return detail::save_sequence(state_, sequence, model_fingerprint, out);
  }

  /// A new sequence from saved bytes. Magic, version, sizes, checksums, policy, shape and model are
  /// checked first; a failure changes nothing.
  [[nodiscard]] Expected<SequenceId> load(Span<const std::byte> in,
                                          std::uint64_t model_fingerprint) noexcept {
    return detail::load_sequence(state_, in, model_fingerprint);
  }

  // --- views ---------------------------------------------------------------------------------

  /// The view of a layer that attend takes, valid until the cache is destroyed. Precondition:
  /// 0 <= i < num_layers.
  [[nodiscard]] Ref<0> layer(int i) const noexcept requires(num_classes == 1) {
    return std::get<0>(state_.stores).ref(place(i).slot);
  }

  /// Calls `Status f(ref)` with the view of layer `i`, whose type depends on its policy class.
  template <class F>
  Status visit_layer(int i, F&& f) const {
    if (Status s = state_.check_layer(i); !s.ok()) return s;
    Status status{};
    state_.with_store(place(i).policy_class,
                      [&](const auto& store) { status = f(store.ref(place(i).slot)); });
    return status;
  }

 private:
  using State = detail::CacheState<L, Classes>;

  KVCache() = default;

  State state_{};
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
