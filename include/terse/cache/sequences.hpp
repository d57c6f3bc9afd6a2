/// The life of sequences: created, forked, shortened, released.
#pragma once

#include <cstdint>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/fork.hpp"
#include "terse/cache/grid.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

template <class State>
[[nodiscard]] Expected<SequenceId> create_sequence(State& state) noexcept {
  if (state.in_step) return inside_step();
  for (int i = 0; i < state.config.max_sequences; ++i) {
    SequenceRecord& record = state.sequences[i];
    if (record.alive != 0) continue;
    record = {.alive = 1, .generation = record.generation + 1};
    state.memory.wrote(&record);
    state.for_each_store([&](auto& store) { store.clear_sequence(i); });
    return SequenceId{i, record.generation};
  }
  return error(StatusCode::too_many_sequences, "terse::KVCache: max_sequences are alive",
               state.config.max_sequences);
}

template <class State>
Status release_sequence(State& state, SequenceId sequence) noexcept {
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  state.for_each_store([&](auto& store) {
    shrink(store, sequence.index, 0);
    store.clear_sequence(sequence.index);
  });
  state.memory.set(state.sequences[sequence.index].alive, 0);
  state.memory.set(state.sequences[sequence.index].length_tokens, 0);
  return {};
}

template <class State>
[[nodiscard]] Expected<SequenceId> fork_sequence(State& state, SequenceId source) noexcept {
  if (Status s = state.check_idle(source); !s.ok()) return s;
  Status room{};
  state.for_each_store([&](auto& store) {
    if (!can_fork(store, source.index)) {
      room = error(StatusCode::no_free_pages, "terse::KVCache::fork: the open blocks need pages");
    }
  });
  if (!room.ok()) return room;
  Expected<SequenceId> target = create_sequence(state);
  if (!target.ok()) return target;
  state.memory.order();
  state.for_each_store([&](auto& store) { copy_sequence(store, source.index, target->index); });
  state.memory.set(state.sequences[target->index].length_tokens,
                   state.sequences[source.index].length_tokens);
  return target;
}

template <class State>
Status truncate_sequence(State& state, SequenceId sequence, std::int64_t length_tokens) noexcept {
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  SequenceRecord& record = state.sequences[sequence.index];
  if (length_tokens < 0 || length_tokens > record.length_tokens) {
    return error(StatusCode::invalid_argument,
                 "terse::KVCache::truncate: length must be in 0..length of the sequence",
                 length_tokens);
  }
  if (length_tokens == record.length_tokens) return {};
  state.for_each_store([&](auto& store) { shrink(store, sequence.index, length_tokens); });
  state.memory.set(record.length_tokens, length_tokens);
  return {};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
