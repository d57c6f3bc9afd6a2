/// `KVCache<Layout, Policy>`: the host-side owner of one model's bookkeeping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "terse/cache/append.hpp"
#include "terse/cache/compact.hpp"
#include "terse/cache/evict.hpp"
#include "terse/cache/fork.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/cache/save.hpp"
#include "terse/cache/schedule.hpp"
#include "terse/cache/steps.hpp"
#include "terse/config.hpp"
#include "terse/core/host_array.hpp"

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
    MemoryPlan result;
    Status status = plan_all(config, policies, &result, std::make_index_sequence<num_classes>{});
    if (!status.ok()) return status;
    return result;
  }

  /// ok, or why this configuration cannot be served.
  [[nodiscard]] static Status supports(const CacheConfig& config, const Configs& policies = {}) {
    return plan(config, policies).status();
  }

  /// An empty cache over `buffers`, which must outlive it.
  [[nodiscard]] static Expected<KVCache> create(const CacheConfig& config, const Buffers& buffers,
                                                const Configs& policies = {}) {
    Expected<KVCache> cache = bind_buffers(config, buffers, policies);
    if (cache.ok()) cache->reset();
    return cache;
  }

  /// A cache that goes on from `buffers` (or a byte copy of them) as another one left them, between
  /// steps. The configuration must be that of the cache that wrote them.
  [[nodiscard]] static Expected<KVCache> attach(const CacheConfig& config, const Buffers& buffers,
                                                const Configs& policies = {}) {
    Expected<KVCache> cache = bind_buffers(config, buffers, policies);
    if (!cache.ok()) return cache;
    if (cache->state_record_->magic != detail::state_magic ||
        cache->state_record_->identity != cache->identity()) {
      return error(StatusCode::mismatch,
                   "terse::KVCache::attach: the buffers are not those of a cache of this layout, "
                   "policy and configuration");
    }
    for (int i = 0; i < config.max_sequences; ++i) {
      if (cache->sequences_[i].pending_tokens != 0) {
        return error(StatusCode::wrong_phase,
                     "terse::KVCache::attach: the buffers were copied inside a step", i);
      }
    }
    return cache;
  }

  [[nodiscard]] const CacheConfig& config() const noexcept { return config_; }
  [[nodiscard]] const MemoryPlan& memory_plan() const noexcept { return plan_; }
  /// Precondition: 0 <= layer < num_layers.
  [[nodiscard]] LayerPlace place(int layer) const noexcept { return places_[layer]; }

  // --- sequences -----------------------------------------------------------------------------

  /// A new, empty sequence.
  [[nodiscard]] Expected<SequenceId> create_sequence() noexcept {
    if (in_step_) return inside_step();
    for (int i = 0; i < config_.max_sequences; ++i) {
      SequenceRecord& record = sequences_[i];
      if (record.alive != 0) continue;
      record.alive = 1;
      record.length_tokens = 0;
      record.pending_tokens = 0;
      ++record.generation;
      for_each_store([&](auto& store) { store.clear_sequence(i); });
      return SequenceId{i, record.generation};
    }
    return error(StatusCode::too_many_sequences, "terse::KVCache: max_sequences are alive",
                 config_.max_sequences);
  }

  /// Ends a sequence and drops its pages.
  Status release(SequenceId sequence) noexcept {
    if (Status s = check_idle(sequence); !s.ok()) return s;
    for_each_store([&](auto& store) {
      detail::shrink(store, sequence.index, 0);
      store.clear_sequence(sequence.index);
    });
    sequences_[sequence.index].alive = 0;
    sequences_[sequence.index].length_tokens = 0;
    return {};
  }

  /// Committed tokens of a sequence, evicted ones included.
  [[nodiscard]] Expected<std::int64_t> length(SequenceId sequence) const noexcept {
    if (Status s = check(sequence); !s.ok()) return s;
    return std::int64_t{sequences_[sequence.index].length_tokens};
  }

  /// A second sequence with the same tokens. Sealed pages are shared (paged layouts); the open
  /// block and the tail are copied.
  [[nodiscard]] Expected<SequenceId> fork(SequenceId source) noexcept {
    if (Status s = check_idle(source); !s.ok()) return s;
    Status room{};
    for_each_store([&](auto& store) {
      if (!detail::can_fork(store, source.index)) {
        room = error(StatusCode::no_free_pages, "terse::KVCache::fork: the open blocks need pages");
      }
    });
    if (!room.ok()) return room;
    Expected<SequenceId> target = create_sequence();
    if (!target.ok()) return target;
    for_each_store([&](auto& store) { detail::fork_sequence(store, source.index, target->index); });
    sequences_[target->index].length_tokens = sequences_[source.index].length_tokens;
    return target;
  }

  /// Drops the tokens at `length_tokens` and later. Exact as long as they are in the tail or the
  /// open block; of sealed blocks only live bits fall, and later tokens start a new block.
  Status truncate(SequenceId sequence, std::int64_t length_tokens) noexcept {
    if (Status s = check_idle(sequence); !s.ok()) return s;
    SequenceRecord& record = sequences_[sequence.index];
    if (length_tokens < 0 || length_tokens > record.length_tokens) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::truncate: length must be in 0..length of the sequence",
                   length_tokens);
    }
    if (length_tokens == record.length_tokens) return {};
    for_each_store([&](auto& store) { detail::shrink(store, sequence.index, length_tokens); });
    record.length_tokens = length_tokens;
    return {};
  }

  // --- steps ---------------------------------------------------------------------------------

  /// Begins a step: validates all parts and reserves entries and pages for all layers, or changes
  /// nothing. A sequence occurs at most once. Exact copies of tokens sealed before are given up.
  Status begin_step(Span<const StepPart> parts) noexcept {
    if (in_step_) return inside_step();
    if (parts.empty() || parts.size() > static_cast<std::size_t>(config_.max_sequences)) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::begin_step: between 1 and max_sequences parts",
                   static_cast<std::int64_t>(parts.size()));
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (Status s = check(parts[i].sequence); !s.ok()) return s;
      if (parts[i].tokens < 1) {
        return error(StatusCode::invalid_argument,
                     "terse::KVCache::begin_step: a part needs at least one token",
                     parts[i].tokens);
      }
      if (parts[i].tokens > config_.max_step_tokens) {
        return error(StatusCode::too_many_tokens,
                     "terse::KVCache::begin_step: more tokens than max_step_tokens",
                     parts[i].tokens);
      }
      for (std::size_t j = 0; j < i; ++j) {
        if (parts[j].sequence.index == parts[i].sequence.index) {
          return error(StatusCode::invalid_argument,
                       "terse::KVCache::begin_step: a sequence occurs twice",
                       parts[i].sequence.index);
        }
      }
      const std::int64_t length = sequences_[parts[i].sequence.index].length_tokens;
      if (length + parts[i].tokens > 0x7fffffff) {
        return error(StatusCode::too_many_tokens,
                     "terse::KVCache::begin_step: positions are limited to 2^31 - 1", length);
      }
    }
    Status status{};
    for_each_store([&](auto& store) {
      std::int64_t pages = 0;
      for (const StepPart& part : parts) {
        const int index = part.sequence.index;
        const detail::StepNeed need =
            detail::step_need(store, index, sequences_[index].length_tokens, part.tokens);
        if (!detail::has_room(store, index, need.new_entries)) {
          status = error(StatusCode::too_many_tokens,
                         "terse::KVCache::begin_step: a sequence would store more than max_tokens",
                         index);
        }
        pages += need.new_pages * store.shape.slots * store.shape.rows;
      }
      if constexpr (L::paged) {
        if (status.ok() && pages > store.pool.free_pages()) {
          status = error(StatusCode::no_free_pages,
                         "terse::KVCache::begin_step: the pool lacks pages; detail: pages missing",
                         pages - store.pool.free_pages());
        }
      }
    });
    if (!status.ok()) return status;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const int index = parts[i].sequence.index;
      for_each_store([&](auto& store) {
        detail::reserve_step(store, index, sequences_[index].length_tokens, parts[i].tokens);
      });
      sequences_[index].pending_tokens = parts[i].tokens;
      parts_[static_cast<std::int64_t>(i)] = parts[i];
    }
    num_parts_ = static_cast<int>(parts.size());
    for (int s = 0; s < total_slots_; ++s) slot_written_[s] = false;
    in_step_ = true;
    return {};
  }

  /// Stores the step's keys and values of a layer. Exactly once per slot and step.
  Status append(int layer, const AppendInputs& inputs) noexcept {
    if (!in_step_) return outside_step();
    if (Status s = check_layer(layer); !s.ok()) return s;
    Status status{};
    with_store(places_[layer].policy_class,
               [&](auto& store) { status = append_to(store, places_[layer], inputs); });
    return status;
  }

  /// Ends the step: of part i the first `accepted_tokens[i]` tokens become part of the sequence,
  /// the others are forgotten (speculative decoding). Empty: all are accepted. Every slot must have
  /// been appended to.
  Status commit_step(Span<const int> accepted_tokens = {}) noexcept {
    if (!in_step_) return outside_step();
    if (!accepted_tokens.empty() &&
        accepted_tokens.size() != static_cast<std::size_t>(num_parts_)) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::commit_step: one accepted count per part", num_parts_);
    }
    for (int i = 0; i < num_parts_ && !accepted_tokens.empty(); ++i) {
      const int accepted = accepted_tokens[static_cast<std::size_t>(i)];
      if (accepted < 0 || accepted > parts_[i].tokens) {
        return error(
            StatusCode::invalid_argument,
            "terse::KVCache::commit_step: accepted tokens must be in 0..tokens of the part",
            accepted);
      }
    }
    for (int s = 0; s < total_slots_; ++s) {
      if (!slot_written_[s]) {
        return error(StatusCode::wrong_phase,
                     "terse::KVCache::commit_step: a slot was not appended to; detail: its number",
                     s);
      }
    }
    for (int i = 0; i < num_parts_; ++i) {
      const int index = parts_[i].sequence.index;
      SequenceRecord& record = sequences_[index];
      const int accepted =
          accepted_tokens.empty() ? parts_[i].tokens : accepted_tokens[static_cast<std::size_t>(i)];
      const std::int64_t length = record.length_tokens + accepted;
      for_each_store([&](auto& store) {
        if (accepted == 0) {
          detail::abandon_reserved(store, index, length);
        } else {
          detail::shrink(store, index, length);
        }
      });
      record.length_tokens = length;
      record.pending_tokens = 0;
    }
    in_step_ = false;
    return {};
  }

  /// Ends the step without its tokens. What observe was told during it stays told.
  Status abandon_step() noexcept {
    if (!in_step_) return outside_step();
    for (int i = 0; i < num_parts_; ++i) {
      const int index = parts_[i].sequence.index;
      for_each_store([&](auto& store) {
        detail::abandon_reserved(store, index, sequences_[index].length_tokens);
      });
      sequences_[index].pending_tokens = 0;
    }
    in_step_ = false;
    return {};
  }

  // --- eviction ------------------------------------------------------------------------------

  /// Floats of column sums of one part: `[unit, entry, 64]` of the layer's slot. Precondition:
  /// 0 <= layer < num_layers.
  [[nodiscard]] std::size_t column_sum_floats(int layer) const noexcept {
    std::size_t floats = 0;
    with_store(places_[layer].policy_class, [&](const auto& store) {
      floats = static_cast<std::size_t>(store.shape.unit.units) *
               static_cast<std::size_t>(store.shape.entries) * block_tokens;
    });
    return floats;
  }

  /// Feeds the evictor of a layer's slot: `column_sums [part, unit, entry, 64]` as attend wrote
  /// them for `parts`. Allowed inside a step and after it, before the next change of the sequences;
  /// with tokens that may be rejected, commit first and attend again for the accepted rows.
  Status observe(int layer, Span<const StepPart> parts, Span<const float> column_sums) noexcept {
    if (Status s = check_layer(layer); !s.ok()) return s;
    for (const StepPart& part : parts) {
      if (Status s = check(part.sequence); !s.ok()) return s;
    }
    if (column_sums.size() < parts.size() * column_sum_floats(layer)) {
      return error(StatusCode::buffer_too_small,
                   "terse::KVCache::observe: fewer column sums than parts * column_sum_floats");
    }
    Status status{};
    with_store(places_[layer].policy_class, [&](auto& store) {
      status = observe_in(store, places_[layer].slot, parts, column_sums.data());
    });
    return status;
  }

  /// Lets the evictor of every slot drop tokens, leaving room for `incoming_tokens` more, and
  /// returns the pages whose tokens are all dead. Gives the number of pages that became free.
  Expected<std::int64_t> evict(SequenceId sequence, int incoming_tokens = 0) {
    if (Status s = check_idle(sequence); !s.ok()) return s;
    if (incoming_tokens < 0) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::evict: incoming_tokens is negative", incoming_tokens);
    }
    std::int64_t freed = 0;
    for_each_store([&](auto& store) {
      freed +=
          detail::evict_sequence(store, sequence.index,
                                 SelectContext{sequences_[sequence.index].length_tokens,
                                               incoming_tokens, store.shape.unit_query_heads()});
    });
    return freed;
  }

  /// What compact would need and give.
  [[nodiscard]] Expected<CompactPlan> plan_compact(SequenceId sequence) const noexcept {
    if (Status s = check_idle(sequence); !s.ok()) return s;
    CompactPlan total;
    for_each_store(
        [&](const auto& store) { total += detail::plan_compaction(store, sequence.index); });
    return total;
  }

  /// Moves the live tokens of sealed blocks together and returns the pages won. Codes that carry
  /// their own scales move unchanged; blocks with per-channel groups are encoded again, which
  /// `allow_reencoding` must permit. Exact copies in the tail are given up.
  Expected<CompactPlan> compact(SequenceId sequence, bool allow_reencoding = false) noexcept {
    Expected<CompactPlan> planned = plan_compact(sequence);
    if (!planned.ok()) return planned.status();
    if (planned->tokens_reencoded > 0 && !allow_reencoding) {
      return error(StatusCode::would_be_lossy,
                   "terse::KVCache::compact: tokens share scales and would be encoded again; pass "
                   "allow_reencoding; detail: tokens",
                   planned->tokens_reencoded);
    }
    Status status{};
    for_each_store([&](auto& store) {
      const CompactPlan own = detail::plan_compaction(store, sequence.index);
      if constexpr (L::paged) {
        if (own.pages_needed > store.pool.free_pages()) {
          status = error(StatusCode::no_free_pages,
                         "terse::KVCache::compact: too few free pages; detail: pages missing",
                         own.pages_needed - store.pool.free_pages());
        }
      }
    });
    if (!status.ok()) return status;
    for_each_store([&](auto& store) { detail::compact_sequence(store, sequence.index); });
    return planned;
  }

  [[nodiscard]] MemoryUsage memory_usage() const noexcept {
    MemoryUsage usage;
    usage.tail_bytes = plan_.tails_bytes;
    usage.state_bytes = plan_.state_bytes;
    for_each_store([&](const auto& store) {
      const std::int64_t free = store_free_pages(store);
      usage.pages_free += free;
      usage.pages_held += store.shape.num_pages - free;
      usage.page_bytes_held +=
          static_cast<std::size_t>(store.shape.num_pages - free) * store.shape.page_bytes;
      for (int i = 0; i < config_.max_sequences; ++i) {
        if (sequences_[i].alive == 0) continue;
        const std::int64_t length = sequences_[i].length_tokens;
        usage.stored_tokens += length * store.shape.slots * store.shape.unit.units;
        for (int s = 0; s < store.shape.slots; ++s) {
          const auto r = store.ref(s);
          for (int u = 0; u < store.shape.unit.units; ++u) {
            usage.live_tokens += r.count_live(i, u, length);
          }
        }
      }
    });
    return usage;
  }

  // --- saving --------------------------------------------------------------------------------

  /// Bytes that save writes for a sequence, exactly.
  [[nodiscard]] Expected<std::size_t> saved_bytes(SequenceId sequence) const noexcept {
    if (Status s = check_idle(sequence); !s.ok()) return s;
    std::size_t bytes = sizeof(detail::SaveHeader);
    for_each_store([&](const auto& store) {
      bytes += sizeof(detail::ClassHeader) + detail::payload_bytes(store, sequence.index);
    });
    return bytes;
  }

  /// Writes a sequence as self-describing bytes. `model_fingerprint`: any number that names the
  /// model, checked by load.
  Status save(SequenceId sequence, std::uint64_t model_fingerprint, Span<std::byte> out) noexcept {
    const Expected<std::size_t> need = saved_bytes(sequence);
    if (!need.ok()) return need.status();
    if (out.data() == nullptr || out.size() < *need) {
      return error(StatusCode::buffer_too_small,
                   "terse::KVCache::save: the buffer is smaller than saved_bytes; detail: bytes",
                   static_cast<std::int64_t>(*need));
    }
    detail::SaveHeader header;
    header.num_classes = static_cast<std::uint32_t>(num_classes);
    header.total_bytes = *need;
    header.model_fingerprint = model_fingerprint;
    header.length_tokens = sequences_[sequence.index].length_tokens;
    header.checksum = detail::fingerprint(&header, sizeof header);
    std::memcpy(out.data(), &header, sizeof header);
    std::byte* at = out.data() + sizeof header;
    for_each_store([&](auto& store) {
      detail::ClassHeader own;
      own.identity = detail::class_identity(store);
      own.payload_bytes = detail::payload_bytes(store, sequence.index);
      detail::write_payload(store, sequence.index, at + sizeof own);
      own.checksum =
          detail::fingerprint(at + sizeof own, static_cast<std::size_t>(own.payload_bytes));
      std::memcpy(at, &own, sizeof own);
      at += sizeof own + own.payload_bytes;
    });
    return {};
  }

  /// A new sequence from saved bytes. Magic, version, sizes, checksums, policy, shape and model are
  /// checked first; a failure changes nothing.
  [[nodiscard]] Expected<SequenceId> load(Span<const std::byte> in,
                                          std::uint64_t model_fingerprint) noexcept {
    if (in_step_) return inside_step();
    detail::SaveHeader header;
    if (in.data() == nullptr || in.size() < sizeof header) {
      return error(StatusCode::corrupt_data, "terse::KVCache::load: no room for a header");
    }
    std::memcpy(&header, in.data(), sizeof header);
    detail::SaveHeader unsigned_header = header;
    unsigned_header.checksum = 0;
    if (header.magic != detail::save_magic) {
      return error(StatusCode::corrupt_data, "terse::KVCache::load: not a saved sequence");
    }
    if (header.version != detail::save_version) {
      return error(StatusCode::mismatch, "terse::KVCache::load: another format version",
                   header.version);
    }
    if (detail::fingerprint(&unsigned_header, sizeof unsigned_header) != header.checksum ||
        header.total_bytes != in.size() || header.length_tokens < 0 ||
        header.length_tokens > 0x7fffffff) {
      return error(StatusCode::corrupt_data,
                   "terse::KVCache::load: the header is damaged or the "
                   "bytes are cut off");
    }
    if (header.model_fingerprint != model_fingerprint) {
      return error(StatusCode::mismatch, "terse::KVCache::load: saved for another model");
    }
    if (header.num_classes != static_cast<std::uint32_t>(num_classes)) {
      return error(StatusCode::mismatch, "terse::KVCache::load: another number of policy classes",
                   header.num_classes);
    }
    Status status{};
    std::size_t at = sizeof header;
    for_each_store([&](auto& store) {
      if (status.ok()) status = check_payload(store, in, header.length_tokens, &at);
    });
    if (status.ok() && at != in.size()) {
      status = error(StatusCode::corrupt_data, "terse::KVCache::load: bytes are left over");
    }
    if (!status.ok()) return status;
    Expected<SequenceId> sequence = create_sequence();
    if (!sequence.ok()) return sequence;
    at = sizeof header;
    for_each_store([&](auto& store) {
      detail::ClassHeader own;
      std::memcpy(&own, in.data() + at, sizeof own);
      detail::read_payload(store, sequence->index, in.data() + at + sizeof own);
      at += sizeof own + static_cast<std::size_t>(own.payload_bytes);
    });
    sequences_[sequence->index].length_tokens = header.length_tokens;
    return sequence;
  }

  // --- views ---------------------------------------------------------------------------------

  /// The view of a layer that attend takes, valid until the cache is destroyed. Precondition:
  /// 0 <= i < num_layers.
  [[nodiscard]] Ref<0> layer(int i) const noexcept requires(num_classes == 1) {
    return std::get<0>(stores_).ref(places_[i].slot);
  }

  /// Calls `Status f(ref)` with the view of layer `i`, whose type depends on its policy class.
  template <class F>
  Status visit_layer(int i, F&& f) const {
    if (Status s = check_layer(i); !s.ok()) return s;
    Status status{};
    with_store(places_[i].policy_class,
               [&](const auto& store) { status = f(store.ref(places_[i].slot)); });
    return status;
  }

 private:
  template <std::size_t... I>
  static std::tuple<detail::ClassStore<L, PolicyAt<I>>...> stores_type(std::index_sequence<I...>);
  using Stores = decltype(stores_type(std::make_index_sequence<num_classes>{}));

  KVCache() = default;

  /// A cache over buffers whose content is not yet believed.
  [[nodiscard]] static Expected<KVCache> bind_buffers(const CacheConfig& config,
                                                      const Buffers& buffers,
                                                      const Configs& policies) {
    Expected<MemoryPlan> planned = plan(config, policies);
    if (!planned.ok()) return planned.status();
    const auto check = [](Span<std::byte> buffer, std::size_t need) -> Status {
      if (need > 0 && buffer.data() == nullptr) {
        return error(StatusCode::null_pointer, "terse::KVCache: a buffer is null");
      }
      if (reinterpret_cast<std::uintptr_t>(buffer.data()) % record_align_bytes != 0) {
        return error(StatusCode::misaligned, "terse::KVCache: buffers must be 128-byte aligned");
      }
      if (buffer.size() < need) {
        return error(StatusCode::buffer_too_small,
                     "terse::KVCache: a buffer is smaller than plan() says; detail: bytes needed",
                     static_cast<std::int64_t>(need));
      }
      return {};
    };
    if (Status s = check(buffers.pages, planned->pages_bytes); !s.ok()) return s;
    if (Status s = check(buffers.tails, planned->tails_bytes); !s.ok()) return s;
    if (Status s = check(buffers.state, planned->state_bytes); !s.ok()) return s;
    KVCache cache;
    if (Status s = cache.bind(config, buffers, policies, *planned); !s.ok()) return s;
    return cache;
  }

  /// Names layout, policies, shapes and stored formats.
  [[nodiscard]] std::uint64_t identity() noexcept {
    std::uint64_t hash = detail::state_magic;
    for_each_store([&](auto& store) {
      const std::uint64_t own[] = {detail::class_identity(store),
                                   static_cast<std::uint64_t>(store.shape.sequences),
                                   static_cast<std::uint64_t>(store.shape.entries),
                                   static_cast<std::uint64_t>(store.shape.num_pages)};
      hash = detail::fingerprint(own, sizeof own, hash);
    });
    return hash;
  }

  static Status inside_step() noexcept {
    return error(StatusCode::wrong_phase, "terse::KVCache: not allowed inside a step");
  }
  static Status outside_step() noexcept {
    return error(StatusCode::wrong_phase, "terse::KVCache: no step has begun");
  }

  /// Slots of class `c`: the highest slot that a layer names, plus one.
  static Status count_slots(const CacheConfig& config, int c, int* slots) noexcept {
    *slots = 0;
    if (config.num_layers <= 0) return {};  // make_class_shape says so
    if (config.layers.empty()) {
      *slots = c == 0 ? config.num_layers : 0;
    } else {
      if (config.layers.size() != static_cast<std::size_t>(config.num_layers)) {
        return error(StatusCode::invalid_argument,
                     "terse::CacheConfig: layers must have one place per layer",
                     static_cast<std::int64_t>(config.layers.size()));
      }
      for (const LayerPlace& place : config.layers) {
        if (place.policy_class < 0 || place.policy_class >= num_classes || place.slot < 0 ||
            place.slot >= config.num_layers) {
          return error(StatusCode::invalid_argument,
                       "terse::CacheConfig: a layer names a slot or policy class out of range");
        }
        if (place.policy_class == c && place.slot >= *slots) *slots = place.slot + 1;
      }
      for (int s = 0; s < *slots; ++s) {
        bool used = false;
        for (const LayerPlace& place : config.layers) {
          used = used || (place.policy_class == c && place.slot == s);
        }
        if (!used) {
          return error(StatusCode::invalid_argument,
                       "terse::CacheConfig: no layer uses this slot; slots of a class are "
                       "numbered from 0 without gaps",
                       s);
        }
      }
    }
    if (*slots == 0) {
      return error(StatusCode::invalid_argument,
                   "terse::CacheConfig: a policy class serves no layer", c);
    }
    return {};
  }

  template <std::size_t... I>
  static Status plan_all(const CacheConfig& config, const Configs& policies, MemoryPlan* out,
                         std::index_sequence<I...>) {
    out->num_classes = num_classes;
    detail::Carver state;
    state.take<detail::StateRecord>(1);
    state.take<SequenceRecord>(
        static_cast<std::size_t>(config.max_sequences > 0 ? config.max_sequences : 0));
    Status status{};
    const auto plan_class = [&]<std::size_t K>() {
      if (!status.ok()) return;
      using P = PolicyAt<K>;
      int slots = 0;
      status = count_slots(config, static_cast<int>(K), &slots);
      if (!status.ok()) return;
      detail::ClassStore<L, P> store;
      status = detail::make_class_shape<L, P>(config, std::get<K>(policies), slots, &store.shape);
      if (!status.ok()) return;
      const std::size_t before = state.used_bytes();
      store.carve_state(state);
      ClassPlan& c = out->classes[K];
      c.shape = store.shape;
      c.bits_per_element = store.shape.bits_per_element();
      c.pages_bytes = store.pages_bytes();
      c.tails_bytes = store.tails_bytes();
      c.state_bytes = state.used_bytes() - before;
      out->pages_bytes += c.pages_bytes;
      out->tails_bytes += c.tails_bytes;
    };
    (plan_class.template operator()<I>(), ...);
    out->state_bytes = state.used_bytes();
    return status;
  }

  Status bind(const CacheConfig& config, const Buffers& buffers, const Configs& policies,
              const MemoryPlan& planned) {
    config_ = config;
    config_.layers = {};
    plan_ = planned;
    places_ = HostArray<LayerPlace>(config.num_layers);
    parts_ = HostArray<StepPart>(config.max_sequences);
    total_slots_ = 0;
    for (int c = 0; c < num_classes; ++c) {
      slot_base_[c] = total_slots_;
      total_slots_ += planned.classes[c].shape.slots;
    }
    slot_written_ = HostArray<bool>(total_slots_);
    factors_ = HostArray<ProjectionFactors>(total_slots_);
    if (places_.data() == nullptr || parts_.data() == nullptr || slot_written_.data() == nullptr ||
        factors_.data() == nullptr) {
      return error(StatusCode::unsupported, "terse::KVCache: out of host memory");
    }
    for (int i = 0; i < config.num_layers; ++i) {
      places_[i] =
          config.layers.empty() ? LayerPlace{i, 0} : config.layers[static_cast<std::size_t>(i)];
    }
    config_.layers = {places_.data(), static_cast<std::size_t>(config.num_layers)};
    detail::Carver state(buffers.state.data());
    state_record_ = state.take<detail::StateRecord>(1);
    sequences_ = state.take<SequenceRecord>(static_cast<std::size_t>(config.max_sequences));
    std::byte* pages = buffers.pages.data();
    std::byte* tails = buffers.tails.data();
    bind_stores(state, pages, tails, policies, std::make_index_sequence<num_classes>{});
    return {};
  }

  template <std::size_t... I>
  void bind_stores(detail::Carver& state, std::byte* pages, std::byte* tails,
                   const Configs& policies, std::index_sequence<I...>) noexcept {
    const auto bind_one = [&]<std::size_t K>() {
      auto& store = std::get<K>(stores_);
      const auto& policy_config = std::get<K>(policies);
      store.shape = plan_.classes[K].shape;
      store.carve_state(state);
      store.base.shape = store.shape;
      store.base.rope = config_.rope;
      store.base.eviction = policy_config.eviction;
      store.base.pages = pages;
      store.base.tails = tails;
      store.base.sequences = sequences_;
      pages += store.pages_bytes();
      tails += store.tails_bytes();
      store.factors = factors_.data() + slot_base_[K];
      for (std::size_t s = 0; s < policy_config.factors.size(); ++s) {
        factors_[slot_base_[K] + static_cast<std::int64_t>(s)] = policy_config.factors[s];
      }
    };
    (bind_one.template operator()<I>(), ...);
  }

  void reset() noexcept {
    *state_record_ = {detail::state_magic, identity()};
    for (int i = 0; i < config_.max_sequences; ++i) sequences_[i] = SequenceRecord{};
    for_each_store([&](auto& store) {
      if constexpr (L::paged) store.pool.reset(store.shape.num_pages);
      for (int i = 0; i < config_.max_sequences; ++i) store.clear_sequence(i);
    });
  }

  template <class F>
  void for_each_store(F&& f) noexcept {
    std::apply([&](auto&... store) { (f(store), ...); }, stores_);
  }
  template <class F>
  void for_each_store(F&& f) const noexcept {
    std::apply([&](const auto&... store) { (f(store), ...); }, stores_);
  }
  template <class F>
  void with_store(int policy_class, F&& f) noexcept {
    int i = 0;
    for_each_store([&](auto& store) {
      if (i++ == policy_class) f(store);
    });
  }
  template <class F>
  void with_store(int policy_class, F&& f) const noexcept {
    int i = 0;
    for_each_store([&](const auto& store) {
      if (i++ == policy_class) f(store);
    });
  }

  template <class Store>
  static std::int64_t store_free_pages(const Store& store) noexcept {
    if constexpr (L::paged) {
      return store.pool.free_pages();
    } else {
      std::int64_t used = 0;
      for (int s = 0; s < store.shape.slots; ++s) {
        const auto r = store.ref(s);
        for (int i = 0; i < store.shape.sequences; ++i) {
          for (int row = 0; row < store.shape.rows; ++row) used += r.entry_count(i, row);
        }
      }
      return store.shape.num_pages - used;
    }
  }

  [[nodiscard]] Status check(SequenceId sequence) const noexcept {
    if (sequence.index < 0 || sequence.index >= config_.max_sequences ||
        sequences_[sequence.index].alive == 0 ||
        sequences_[sequence.index].generation != sequence.generation) {
      return error(StatusCode::stale_sequence,
                   "terse::KVCache: the handle names no living sequence", sequence.index);
    }
    return {};
  }
  [[nodiscard]] Status check_idle(SequenceId sequence) const noexcept {
    if (in_step_) return inside_step();
    return check(sequence);
  }
  [[nodiscard]] Status check_layer(int layer) const noexcept {
    if (layer < 0 || layer >= config_.num_layers) {
      return error(StatusCode::invalid_argument, "terse::KVCache: layer out of range", layer);
    }
    return {};
  }

  /// Checks the class section at `*at` and moves behind it.
  template <class Store>
  Status check_payload(Store& store, Span<const std::byte> in, std::int64_t length,
                       std::size_t* at) noexcept {
    detail::ClassHeader own;
    if (in.size() - *at < sizeof own) {
      return error(StatusCode::corrupt_data, "terse::KVCache::load: a section is cut off");
    }
    std::memcpy(&own, in.data() + *at, sizeof own);
    *at += sizeof own;
    if (own.identity != detail::class_identity(store)) {
      return error(StatusCode::mismatch,
                   "terse::KVCache::load: saved under another layout, policy or shape");
    }
    if (own.payload_bytes > in.size() - *at) {
      return error(StatusCode::corrupt_data, "terse::KVCache::load: a section is cut off");
    }
    const std::byte* payload = in.data() + *at;
    if (detail::fingerprint(payload, static_cast<std::size_t>(own.payload_bytes)) != own.checksum) {
      return error(StatusCode::corrupt_data, "terse::KVCache::load: a checksum does not match");
    }
    const std::int64_t pages =
        detail::count_payload_pages(store, payload, own.payload_bytes, length);
    if (pages < 0) {
      return error(StatusCode::corrupt_data,
                   "terse::KVCache::load: the lengths in a section contradict each other");
    }
    if constexpr (L::paged) {
      if (pages > store.pool.free_pages()) {
        return error(StatusCode::no_free_pages,
                     "terse::KVCache::load: the pool lacks pages; detail: pages missing",
                     pages - store.pool.free_pages());
      }
    }
    *at += static_cast<std::size_t>(own.payload_bytes);
    return {};
  }

  template <class Store>
  Status append_to(Store& store, LayerPlace place, const AppendInputs& inputs) noexcept {
    using P = typename Store::Ref::policy;
    bool& written = slot_written_[slot_base_[place.policy_class] + place.slot];
    if (written) {
      return error(StatusCode::already_appended,
                   "terse::KVCache::append: this step's tokens are already in the layer's slot",
                   place.slot);
    }
    const ClassShape& shape = store.shape;
    std::int64_t rows = 0;
    for (int i = 0; i < num_parts_; ++i) rows += parts_[i].tokens;
    const auto check_input = [&](const HeadRows& in, int heads, int channels) -> Status {
      if (in.data == nullptr) {
        return error(StatusCode::null_pointer, "terse::KVCache::append: an input is null");
      }
      if ((heads > 1 && in.head_stride < channels) || (rows > 1 && in.row_stride < channels)) {
        return error(StatusCode::invalid_argument,
                     "terse::KVCache::append: a stride is smaller than a vector");
      }
      if (!detail::all_finite(in, rows, heads, channels)) {
        return error(StatusCode::not_finite,
                     "terse::KVCache::append: an input holds NaN or infinity");
      }
      return {};
    };
    if (Status s =
            check_input(inputs.keys, shape.unit.units * shape.unit.key_streams, shape.key_width);
        !s.ok()) {
      return s;
    }
    if (Status s = check_input(inputs.values, shape.unit.units * shape.unit.value_streams,
                               shape.value_width);
        !s.ok()) {
      return s;
    }
    if constexpr (P::signal == Signal::gate_logit) {
      if (Status s = check_input(inputs.gate_logits, shape.kv_heads, 1); !s.ok()) return s;
    }
    const auto r = store.ref(place.slot);
    std::int64_t row = 0;
    for (int i = 0; i < num_parts_; ++i) {
      detail::append_sequence(store, r, parts_[i].sequence.index, parts_[i].tokens, row, inputs);
      row += parts_[i].tokens;
    }
    written = true;
    return {};
  }

  template <class Store>
  Status observe_in(Store& store, int slot, Span<const StepPart> parts,
                    const float* sums) noexcept {
    using P = typename Store::Ref::policy;
    if constexpr (P::signal != Signal::column_sum) {
      return error(StatusCode::unsupported,
                   "terse::KVCache::observe: the policy's evictor takes no column sums");
    } else {
      const auto r = store.ref(slot);
      const auto entries = static_cast<std::size_t>(store.shape.entries);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const int sequence = parts[i].sequence.index;
        for (int u = 0; u < store.shape.unit.units; ++u) {
          const float* own = sums + (i * static_cast<std::size_t>(store.shape.unit.units) +
                                     static_cast<std::size_t>(u)) *
                                        entries * block_tokens;
          const std::size_t at = r.unit_entry(sequence, u, 0);
          const auto tokens =
              static_cast<std::size_t>(r.entry_count(sequence, r.row_of_unit(u)) * block_tokens);
          for (std::size_t t = 0; t < tokens; ++t) {
            if ((r.live[at + t / block_tokens] >> (t % block_tokens) & 1u) != 0) {
              P::evictor::observe(r.token_states[at * block_tokens + t], own[t]);
            }
          }
        }
      }
      return {};
    }
  }

  CacheConfig config_{};
  MemoryPlan plan_{};
  HostArray<LayerPlace> places_;
  HostArray<StepPart> parts_;
  HostArray<bool> slot_written_;
  HostArray<ProjectionFactors> factors_;
  int slot_base_[max_policy_classes]{};
  int total_slots_ = 0;
  int num_parts_ = 0;
  bool in_step_ = false;
  detail::StateRecord* state_record_ = nullptr;
  SequenceRecord* sequences_ = nullptr;
  Stores stores_{};
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
