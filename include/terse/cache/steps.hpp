/// Steps of a cache: begun for all layers or not at all, appended to layer by layer, committed or
/// abandoned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/append.hpp"
#include "terse/cache/cache_state.hpp"
#include "terse/cache/grid.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

template <class State>
[[nodiscard]] Status check_parts(const State& state, Span<const StepPart> parts) noexcept {
  if (parts.empty() || parts.size() > static_cast<std::size_t>(state.config.max_sequences)) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::begin_step: between 1 and max_sequences parts",
                 static_cast<std::int64_t>(parts.size()));
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (Status s = state.check(parts[i].sequence); !s.ok()) return s;
    if (parts[i].tokens < 1) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::begin_step: a part needs at least one token", parts[i].tokens);
    }
    if (parts[i].tokens > state.config.max_step_tokens) {
      return error(StatusCode::too_many_tokens,
                   "terse::KVCache::begin_step: more tokens than max_step_tokens", parts[i].tokens);
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (parts[j].sequence.index == parts[i].sequence.index) {
        return error(StatusCode::invalid_argument,
                     "terse::KVCache::begin_step: a sequence occurs twice",
                     parts[i].sequence.index);
      }
    }
    const std::int64_t length = state.sequences[parts[i].sequence.index].length_tokens;
    if (length + parts[i].tokens > 0x7fffffff) {
      return error(StatusCode::too_many_tokens,
                   "terse::KVCache::begin_step: positions are limited to 2^31 - 1", length);
    }
  }
  return {};
}

/// Open blocks that part `i` of a step must copy. Each earlier part with the same block has left it
/// to the others by then.
template <class Store>
[[nodiscard]] std::int64_t open_copies(const Store& store, Span<const StepPart> parts,
                                       std::size_t i) noexcept {
  std::int64_t copies = 0;
  if constexpr (Store::Ref::layout::paged) {
    const auto page_of = [&](const auto& r, std::size_t part, int row) {
      const int index = parts[part].sequence.index;
      return open_page(store, r, index, row, store.base.sequences[index].length_tokens);
    };
    for (int s = 0; s < store.shape.slots; ++s) {
      const auto r = store.ref(s);
      for (int row = 0; row < store.shape.rows; ++row) {
        const std::int32_t page = page_of(r, i, row);
        if (page == no_page || store.pool.references(page) < 2) continue;
        int owners = store.pool.references(page);
        for (std::size_t j = 0; j < i; ++j) owners -= page_of(r, j, row) == page ? 1 : 0;
        if (owners > 1) ++copies;
      }
    }
  }
  return copies;
}

/// Whether lists and pool have room for the parts.
template <class Store>
[[nodiscard]] Status check_room(const Store& store, Span<const StepPart> parts) noexcept {
  std::int64_t pages = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const int index = parts[i].sequence.index;
    const StepNeed need =
        step_need(store, index, store.base.sequences[index].length_tokens, parts[i].tokens);
    if (!has_room(store, index, need.new_entries)) {
      return error(
          StatusCode::too_many_tokens,
          "terse::KVCache::begin_step: a sequence's list of blocks is full: it would store "
          "more than max_tokens, blocks that truncate or evict cut counted whole; compact "
          "joins those",
          index);
    }
    pages += need.new_pages + open_copies(store, parts, i);
  }
  if constexpr (Store::Ref::layout::paged) {
    if (pages > store.pool.free_pages()) {
      return error(StatusCode::no_free_pages,
                   "terse::KVCache::begin_step: the pool lacks pages; detail: pages missing",
                   pages - store.pool.free_pages());
    }
  }
  return {};
}

template <class State>
Status begin_step(State& state, Span<const StepPart> parts) noexcept {
  if (state.in_step) return inside_step();
  Status status = check_parts(state, parts);
  state.for_each_store([&](const auto& store) {
    if (status.ok()) status = check_room(store, parts);
  });
  if (!status.ok()) return status;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    SequenceRecord& record = state.sequences[parts[i].sequence.index];
    state.for_each_store([&](auto& store) {
      reserve_step(store, parts[i].sequence.index, record.length_tokens, parts[i].tokens);
    });
    state.memory.set(record.pending_tokens, parts[i].tokens);
    state.parts[static_cast<std::int64_t>(i)] = parts[i];
  }
  state.num_parts = static_cast<int>(parts.size());
  for (int s = 0; s < state.total_slots; ++s) state.slot_written[s] = false;
  state.in_step = true;
  return {};
}

template <class State>
Status append_to_layer(State& state, int layer, const AppendInputs& inputs) noexcept {
  if (!state.in_step) return outside_step();
  if (Status s = state.check_layer(layer); !s.ok()) return s;
  const LayerPlace place = state.places[layer];
  bool& written = state.slot_written[state.slot_base[place.policy_class] + place.slot];
  if (written) {
    return error(StatusCode::already_appended,
                 "terse::KVCache::append: this step's tokens are already in the layer's slot",
                 place.slot);
  }
  const Span<const StepPart> parts{state.parts.data(), static_cast<std::size_t>(state.num_parts)};
  Status status{};
  state.with_store(place.policy_class,
                   [&](auto& store) { status = append_to_slot(store, place.slot, parts, inputs); });
  written = status.ok();
  return status;
}

template <class State>
[[nodiscard]] Status check_commit(const State& state, Span<const int> accepted_tokens) noexcept {
  if (!accepted_tokens.empty() &&
      accepted_tokens.size() != static_cast<std::size_t>(state.num_parts)) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::commit_step: one accepted count per part", state.num_parts);
  }
  for (int i = 0; i < state.num_parts && !accepted_tokens.empty(); ++i) {
    const int accepted = accepted_tokens[static_cast<std::size_t>(i)];
    if (accepted < 0 || accepted > state.parts[i].tokens) {
      return error(StatusCode::invalid_argument,
                   "terse::KVCache::commit_step: accepted tokens must be in 0..tokens of the part",
                   accepted);
    }
  }
  for (int s = 0; s < state.total_slots; ++s) {
    if (!state.slot_written[s]) {
      return error(StatusCode::wrong_phase,
                   "terse::KVCache::commit_step: a slot was not appended to; detail: its number",
                   s);
    }
  }
  return {};
}

template <class State>
Status commit_step(State& state, Span<const int> accepted_tokens) noexcept {
  if (!state.in_step) return outside_step();
  if (Status s = check_commit(state, accepted_tokens); !s.ok()) return s;
  for (int i = 0; i < state.num_parts; ++i) {
    const int index = state.parts[i].sequence.index;
    SequenceRecord& record = state.sequences[index];
    const int accepted = accepted_tokens.empty() ? state.parts[i].tokens
                                                 : accepted_tokens[static_cast<std::size_t>(i)];
    const std::int64_t length = record.length_tokens + accepted;
    state.for_each_store([&](auto& store) {
      if (accepted == 0) {
        abandon_reserved(store, index, length);
      } else {
        shrink(store, index, length);
      }
    });
    state.memory.set(record.length_tokens, length);
    state.memory.set(record.pending_tokens, 0);
  }
  state.in_step = false;
  return {};
}

template <class State>
Status abandon_step(State& state) noexcept {
  if (!state.in_step) return outside_step();
  for (int i = 0; i < state.num_parts; ++i) {
    const int index = state.parts[i].sequence.index;
    SequenceRecord& record = state.sequences[index];
    state.for_each_store(
        [&](auto& store) { abandon_reserved(store, index, record.length_tokens); });
    state.memory.set(record.pending_tokens, 0);
  }
  state.in_step = false;
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
