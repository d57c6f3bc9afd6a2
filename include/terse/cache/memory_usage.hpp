/// Counting what a cache holds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Blocks of a contiguous layout that are in use.
template <class Store>
[[nodiscard]] std::int64_t used_blocks(const Store& store) noexcept {
  std::int64_t used = 0;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int i = 0; i < store.shape.sequences; ++i) {
      for (int row = 0; row < store.shape.rows; ++row) used += r.entry_count(i, row);
    }
  }
  return used;
}

template <class Store>
void add_usage(const Store& store, MemoryUsage* usage) noexcept {
  std::int64_t held = 0, free = 0;
  if constexpr (Store::Ref::layout::paged) {
    held = store.pool.held_pages();
    free = store.pool.free_pages();
  } else {
    held = used_blocks(store);
    free = store.shape.num_pages - held;
  }
  usage->pages_free += free;
  usage->pages_held += held;
  usage->page_bytes_held += static_cast<std::size_t>(held) * store.shape.page_bytes;
  for (int i = 0; i < store.shape.sequences; ++i) {
    if (store.base.sequences[i].alive == 0) continue;
    const std::int64_t length = store.base.sequences[i].length_tokens;
    usage->stored_tokens += length * store.shape.slots * store.shape.unit.units;
    for (int s = 0; s < store.shape.slots; ++s) {
      const auto r = store.ref(s);
      for (int u = 0; u < store.shape.unit.units; ++u) {
        usage->live_tokens += r.count_live(i, u, length);
      }
    }
  }
}

template <class State>
[[nodiscard]] MemoryUsage memory_usage(const State& state) noexcept {
  MemoryUsage usage;
  usage.tail_bytes = state.plan.tails_bytes;
  usage.state_bytes = state.plan.state_bytes;
  state.for_each_store([&](const auto& store) { add_usage(store, &usage); });
  return usage;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
