/// The block grid of a sequence in one policy class: reserving, shortening and abandoning tokens.
#pragma once

#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// 64-token blocks of a grid with origin `origin` that positions below `end` touch.
[[nodiscard]] inline std::int64_t grid_blocks(std::int64_t origin, std::int64_t end) noexcept {
  return end <= origin ? 0 : (end - origin + block_tokens - 1) / block_tokens;
}

/// End of the sealed blocks when `length` tokens are committed.
template <class Store>
[[nodiscard]] std::int64_t sealed_end_of(const Store& store, const GridRecord& grid,
                                         std::int64_t length) noexcept {
  if (length <= grid.origin) return grid.origin;
  const std::int64_t whole = store.shape.open
                                 ? (length - grid.origin) / block_tokens * block_tokens
                                 : store.shape.tail.sealed_before(length - 1 - grid.origin);
  const std::int64_t end = grid.origin + whole;
  return end > grid.sealed_end ? end : grid.sealed_end;
}

/// Entries per row and pages per slot and row that a step of `tokens` needs.
struct StepNeed {
  std::int64_t new_entries = 0;
  std::int64_t new_pages = 0;
};

template <class Store>
[[nodiscard]] StepNeed step_need(const Store& store, int sequence, std::int64_t length,
                                 int tokens) noexcept {
  const GridRecord& grid = store.base.grids[sequence];
  StepNeed need;
  need.new_entries = grid_blocks(grid.origin, length + tokens) - grid_blocks(grid.origin, length);
  need.new_pages =
      store.shape.open
          ? need.new_entries
          : (sealed_end_of(store, grid, length + tokens) - grid.sealed_end) / block_tokens;
  return need;
}

/// Whether every row of the sequence has room for `new_entries` more.
template <class Store>
[[nodiscard]] bool has_room(const Store& store, int sequence, std::int64_t new_entries) noexcept {
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      if (r.entry_count(sequence, row) + new_entries > store.shape.entries) return false;
    }
  }
  return true;
}

/// Makes the entries of a step and gives pages to the blocks that it will write. Room and free
/// pages have been checked.
template <class Store>
void reserve_step(Store& store, int sequence, std::int64_t length, int tokens) noexcept {
  GridRecord& grid = store.base.grids[sequence];
  grid.exact_begin = grid.sealed_end;
  const std::int64_t end = length + tokens;
  const std::int64_t sealed_end = sealed_end_of(store, grid, end);
  const std::int64_t old_blocks = grid_blocks(grid.origin, length);
  const std::int64_t new_blocks = grid_blocks(grid.origin, end);
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    r.appended[sequence] = 0;
    for (int row = 0; row < store.shape.rows; ++row) {
      for (std::int64_t b = old_blocks; b < new_blocks; ++b) {
        store.push_entry(r, sequence, row, grid.origin + b * block_tokens);
      }
      if constexpr (Store::Ref::layout::paged) {
        const int unit = row * store.shape.units_per_row;
        for (int e = r.entry_count(sequence, row) - 1; e >= 0; --e) {
          const std::int64_t first = r.first_position(sequence, unit, e);
          if (first < grid.sealed_end) break;
          const bool written = store.shape.open || first + block_tokens <= sealed_end;
          if (written && r.page_slot(sequence, row, e) == no_page) {
            r.page_slot(sequence, row, e) = store.take_page();
          }
        }
      }
    }
  }
}

/// Clears the live bits of the tokens at `length` and later, in entries that keep earlier ones.
template <class Ref>
void clear_from(const Ref& r, int sequence, int unit, int entry, std::int64_t length) noexcept {
  r.live_mask(sequence, unit, entry) &= r.before(sequence, unit, entry, length);
}

/// Whether every row still has the entry whose block begins at `first`.
template <class Store>
[[nodiscard]] bool all_rows_hold(const Store& store, int sequence, std::int64_t first) noexcept {
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      int e = r.entry_count(sequence, row) - 1;
      const int unit = row * store.shape.units_per_row;
      while (e >= 0 && r.first_position(sequence, unit, e) > first) --e;
      if (e < 0 || r.first_position(sequence, unit, e) != first) return false;
    }
  }
  return true;
}

/// Makes `length` the length of the sequence: releases entries and pages beyond it. Blocks whose
/// exact copies still lie in the tail go back to being unsealed; of older ones only live bits fall,
/// and the sequence continues in a new block.
template <class Store>
void shrink(Store& store, int sequence, std::int64_t length) noexcept {
  GridRecord& grid = store.base.grids[sequence];
  bool exact = length >= (store.shape.open ? grid.sealed_end : grid.exact_begin);
  std::int64_t sealed_end = length;
  if (exact) {
    GridRecord committed = grid;
    if (!store.shape.open) committed.sealed_end = grid.exact_begin;
    sealed_end = sealed_end_of(store, committed, length);
    const std::int64_t unsealed_end = length < grid.sealed_end ? length : grid.sealed_end;
    for (std::int64_t first = sealed_end; first < unsealed_end; first += block_tokens) {
      // A block that eviction has released cannot go back to being unsealed.
      if (!all_rows_hold(store, sequence, first)) sealed_end = first + block_tokens;
    }
    exact = sealed_end <= length;
    if (!exact) sealed_end = length;
  }
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const int unit = row * store.shape.units_per_row;
      int& count = r.entry_count(sequence, row);
      for (int e = count - 1; e >= 0; --e) {
        bool keeps_token = false;
        for (int u = unit; u < unit + store.shape.units_per_row; ++u) {
          keeps_token = keeps_token || r.first_position(sequence, u, e) < length;
          clear_from(r, sequence, u, e, length);
        }
        if (!keeps_token) {
          store.free_entry_page(r, sequence, row, e);
          --count;
        } else if (exact && !store.shape.open &&
                   r.first_position(sequence, unit, e) >= sealed_end) {
          store.free_entry_page(r, sequence, row, e);
        }
      }
    }
  }
  if (exact) {
    grid.sealed_end = sealed_end;
  } else {
    grid = GridRecord{.origin = length, .sealed_end = length, .exact_begin = length};
  }
}

/// Takes back what reserve_step gave: the sequence is `length` tokens long again.
template <class Store>
void abandon_reserved(Store& store, int sequence, std::int64_t length) noexcept {
  GridRecord& grid = store.base.grids[sequence];
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const int unit = row * store.shape.units_per_row;
      int& count = r.entry_count(sequence, row);
      for (int e = count - 1; e >= 0; --e) {
        const std::int64_t first = r.first_position(sequence, unit, e);
        if (first < grid.sealed_end) break;
        if (first >= length) {
          store.free_entry_page(r, sequence, row, e);
          --count;
          continue;
        }
        for (int u = unit; u < unit + store.shape.units_per_row; ++u) {
          clear_from(r, sequence, u, e, length);
        }
        if (!store.shape.open) store.free_entry_page(r, sequence, row, e);
      }
    }
  }
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
