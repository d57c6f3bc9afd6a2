/// Eviction: the evictor chooses, pages whose tokens are all dead return.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Lists the live tokens of a unit below `length`, oldest first. Returns their number.
template <class Store>
[[nodiscard]] int list_tokens(const Store& store, const typename Store::Ref& r, int sequence,
                              int unit, std::int64_t length) noexcept {
  int n = 0;
  const int count = r.entry_count(sequence, r.row_of_unit(unit));
  for (int e = 0; e < count; ++e) {
    std::uint64_t bits = r.live_mask(sequence, unit, e) & r.before(sequence, unit, e, length);
    for (; bits != 0; bits &= bits - 1) {
      const int t = std::countr_zero(bits);
      store.items[n++] = {e, t, static_cast<std::int32_t>(r.position(sequence, unit, e, t))};
    }
  }
  return n;
}

/// Whether a sealed entry of a row holds no live token.
template <class Ref>
[[nodiscard]] TERSE_HOST_DEVICE bool is_dead_entry(const Ref& r, int sequence, int row,
                                                   int entry) noexcept {
  const int unit = row * r.shape.units_per_row;
  std::uint64_t live = 0;
  for (int u = unit; u < unit + r.shape.units_per_row; ++u) live |= r.live_mask(sequence, u, entry);
  return live == 0 && r.first_position(sequence, unit, entry) < r.grids[sequence].sealed_end;
}

/// Removes the sealed entries of a row that hold no live token. Returns the pages that became free.
template <class Store>
int drop_dead_entries(Store& store, const typename Store::Ref& r, int sequence, int row) noexcept {
  int& count = r.entry_count(sequence, row);
  int kept = 0, freed = 0;
  for (int e = 0; e < count; ++e) {
    if (is_dead_entry(r, sequence, row, e)) {
      freed += store.free_entry_page(r, sequence, row, e);
      continue;
    }
    if (kept != e) store.move_entry(r, sequence, row, e, kept);
    ++kept;
  }
  store.memory.set(count, kept);
  return freed;
}

/// Lets the evictor choose for every unit of every slot of a class. Returns the pages that became
/// free.
template <class Store>
std::int64_t evict_tokens(Store& store, int sequence, const SelectContext& context) {
  using Policy = typename Store::Ref::policy;
  using Evictor = typename Policy::evictor;
  std::int64_t freed = 0;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int u = 0; u < store.shape.unit.units; ++u) {
      const int n = list_tokens(store, r, sequence, u, context.length_tokens);
      const std::size_t at = r.unit_entry(sequence, u, 0);
      typename Store::TokenState* states = nullptr;
      if constexpr (Store::has_state) states = r.token_states + at * block_tokens;
      TokenList<typename Store::TokenState> list({store.items, static_cast<std::size_t>(n)},
                                                 r.live + at, states,
                                                 {store.item_keys, static_cast<std::size_t>(n)});
      Evictor::select(list, r.eviction, context);
    }
    for (int row = 0; row < store.shape.rows; ++row) {
      if constexpr (Store::Ref::layout::paged) freed += drop_dead_entries(store, r, sequence, row);
    }
  }
  return freed;
}

template <class State>
Expected<std::int64_t> evict_sequence(State& state, SequenceId sequence, int incoming_tokens) {
  static_assert(std::is_same_v<typename State::Memory, HostMemory>);
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  if (incoming_tokens < 0) {
    return error(StatusCode::invalid_argument, "terse::KVCache::evict: incoming_tokens is negative",
                 incoming_tokens);
  }
  std::int64_t freed = 0;
  state.for_each_store([&](auto& store) {
    freed +=
        evict_tokens(store, sequence.index,
                     SelectContext{state.sequences[sequence.index].length_tokens, incoming_tokens});
  });
  return freed;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
