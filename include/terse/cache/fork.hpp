/// Forking of one policy class: share what is sealed, copy what can still change.
#pragma once

#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Whether an entry's block may still be written to.
template <class Store>
[[nodiscard]] bool is_open_entry(const Store& store, const typename Store::Ref& r, int sequence,
                                 int row, int entry) noexcept {
  return store.shape.open && r.first_position(sequence, row * store.shape.units_per_row, entry) >=
                                 store.base.grids[sequence].sealed_end;
}

/// Whether the pool covers the copies of the open blocks.
template <class Store>
[[nodiscard]] bool can_fork(const Store& store, int sequence) noexcept {
  if constexpr (!Store::Ref::layout::paged) {
    return true;
  } else {
    std::int64_t need = 0;
    for (int s = 0; s < store.shape.slots; ++s) {
      const auto r = store.ref(s);
      for (int row = 0; row < store.shape.rows; ++row) {
        const int last = r.entry_count(sequence, row) - 1;
        if (last >= 0 && is_open_entry(store, r, sequence, row, last)) ++need;
      }
    }
    return need <= store.pool.free_pages();
  }
}

template <class Store>
void copy_sequence(Store& store, int source, int target) noexcept {
  const ClassShape& shape = store.shape;
  const auto entries = static_cast<std::size_t>(shape.entries);
  auto& memory = store.memory;
  memory.set(store.base.grids[target], store.base.grids[source]);
  for (int s = 0; s < shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < shape.rows; ++row) {
      const int count = r.entry_count(source, row);
      memory.set(r.entry_count(target, row), count);
      for (int e = 0; e < count; ++e) {
        if constexpr (Store::Ref::layout::paged) {
          const std::int32_t page = r.page_slot(source, row, e);
          if (page != no_page && is_open_entry(store, r, source, row, e)) {
            memory.set(r.page_slot(target, row, e), store.copy_page(page));
          } else {
            if (page != no_page) store.pool.share(page);
            memory.set(r.page_slot(target, row, e), page);
          }
        } else {
          memory.copy_bytes(r.block(target, row * shape.units_per_row, e),
                            r.block(source, row * shape.units_per_row, e), shape.page_bytes);
        }
      }
    }
    for (int u = 0; u < shape.unit.units; ++u) {
      const std::size_t a = r.unit_entry(source, u, 0), b = r.unit_entry(target, u, 0);
      memory.copy_table(r.live + b, r.live + a, entries);
      memory.copy_table(r.first_positions + b, r.first_positions + a, entries);
      if constexpr (Store::Ref::scatters) {
        memory.copy_table(r.position_deltas + b * block_tokens,
                          r.position_deltas + a * block_tokens, entries * block_tokens);
      }
      if constexpr (Store::has_state) {
        memory.copy_table(r.token_states + b * block_tokens, r.token_states + a * block_tokens,
                          entries * block_tokens);
      }
      if (shape.tail_stride_bytes > 0) {
        memory.copy_bytes(r.unit_tail(target, u), r.unit_tail(source, u), shape.tail_stride_bytes);
      }
    }
  }
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
