/// The block grid of a sequence in one policy class: reserving, shortening and abandoning tokens.
#pragma once

#include <algorithm>
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
[[nodiscard]] inline std::int64_t sealed_end_of(const ClassShape& shape, const GridRecord& grid,
                                                std::int64_t length) noexcept {
  if (length <= grid.origin) return grid.origin;
  const std::int64_t whole = shape.open ? (length - grid.origin) / block_tokens * block_tokens
                                        : shape.tail.sealed_before(length - 1 - grid.origin);
  const std::int64_t end = grid.origin + whole;
  return end > grid.sealed_end ? end : grid.sealed_end;
}

/// Page of a row's open block that the next step goes on filling, or no_page if it begins a new
/// one.
template <class Store>
[[nodiscard]] std::int32_t open_page(const Store& store, const typename Store::Ref& r, int sequence,
                                     int row, std::int64_t length) noexcept {
  if (!store.shape.open || length <= store.base.grids[sequence].sealed_end) return no_page;
  return r.page(sequence, row, r.entry_count(sequence, row) - 1);
}

/// Whether a row's newest block is open and shared with another sequence, so that the next step
/// must copy it before it writes to it.
template <class Store>
[[nodiscard]] bool shares_open_block(const Store& store, const typename Store::Ref& r, int sequence,
                                     int row, std::int64_t length) noexcept {
  if constexpr (Store::Ref::layout::paged) {
    const std::int32_t page = open_page(store, r, sequence, row, length);
    return page != no_page && store.pool.references(page) > 1;
  } else {
    return false;
  }
}

/// What a step needs beside copies of open blocks: entries of each row, pages of all rows of all
/// slots.
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
  const std::int64_t new_blocks =
      store.shape.open
          ? need.new_entries
          : (sealed_end_of(store.shape, grid, length + tokens) - grid.sealed_end) / block_tokens;
  need.new_pages = new_blocks * store.shape.slots * store.shape.rows;
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

/// Position from which on the tail still has exact copies when a step has written up to `end`: the
/// ring's places are written again in turn.
template <class Store>
[[nodiscard]] std::int64_t exact_begin_of(const Store& store, const GridRecord& grid,
                                          std::int64_t end) noexcept {
  if (store.shape.open) return grid.sealed_end;
  const std::int64_t oldest =
      grid.origin + (grid_blocks(grid.origin, end) - store.shape.ring_blocks) * block_tokens;
  return std::clamp(oldest, grid.exact_begin, grid.sealed_end);
}

/// Makes the entries of a step and gives pages to the blocks that it will write. Room and free
/// pages have been checked.
template <class Store>
void reserve_step(Store& store, int sequence, std::int64_t length, int tokens) noexcept {
  GridRecord& grid = store.base.grids[sequence];
  const std::int64_t end = length + tokens;
  store.memory.set(grid.exact_begin, exact_begin_of(store, grid, end));
  const std::int64_t sealed_end = sealed_end_of(store.shape, grid, end);
  const std::int64_t old_blocks = grid_blocks(grid.origin, length);
  const std::int64_t new_blocks = grid_blocks(grid.origin, end);
  const auto slots = static_cast<std::size_t>(store.shape.slots);
  std::uint8_t* appended = &store.ref(0).was_appended(sequence);
  std::fill_n(appended, slots, std::uint8_t{0});
  store.memory.wrote(appended, slots);
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      if constexpr (Store::Ref::layout::paged) {
        if (shares_open_block(store, r, sequence, row, length)) {
          std::int32_t& page = r.page_slot(sequence, row, r.entry_count(sequence, row) - 1);
          const std::int32_t own = store.copy_page(page);
          store.pool.drop(page);
          store.memory.set(page, own);
        }
      }
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
            store.memory.set(r.page_slot(sequence, row, e), store.take_page());
          }
        }
      }
    }
  }
}

/// Clears the live bits of the tokens at `length` and later, in entries that keep earlier ones.
template <class Store>
void clear_from(Store& store, const typename Store::Ref& r, int sequence, int unit, int entry,
                std::int64_t length) noexcept {
  std::uint64_t& mask = r.live_mask(sequence, unit, entry);
  const std::uint64_t kept = mask & r.before(sequence, unit, entry, length);
  if (kept != mask) store.memory.set(mask, kept);
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

/// Where the block begins that all rows can go on filling at `length`, if their newest entries are
/// the same block with its places in order; else `length`, where a new block begins.
template <class Store>
[[nodiscard]] std::int64_t reopened_block(const Store& store, int sequence,
                                          std::int64_t length) noexcept {
  std::int64_t first = -1;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int u = 0; u < store.shape.unit.units; ++u) {
      const int newest = r.entry_count(sequence, r.row_of_unit(u)) - 1;
      if (newest < 0 || !r.is_in_order(sequence, u, newest)) return length;
      const std::int64_t own = r.first_position(sequence, u, newest);
      if (first >= 0 && own != first) return length;
      first = own;
    }
  }
  return length - first < block_tokens ? first : length;
}

/// Makes `length` the length of the sequence: releases entries and pages beyond it. Blocks whose
/// exact copies still lie in the tail go back to being unsealed. Where it cuts into an older one
/// live bits fall; then an open policy goes on in that block, token by token, and another one,
/// whose codes cannot be added to, in a new block.
template <class Store>
void shrink(Store& store, int sequence, std::int64_t length) noexcept {
  GridRecord& grid = store.base.grids[sequence];
  bool exact = length >= (store.shape.open ? grid.sealed_end : grid.exact_begin);
  std::int64_t sealed_end = length;
  if (exact) {
    GridRecord committed = grid;
    if (!store.shape.open) committed.sealed_end = grid.exact_begin;
    sealed_end = sealed_end_of(store.shape, committed, length);
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
      int count = r.entry_count(sequence, row);
      for (int e = count - 1; e >= 0; --e) {
        bool keeps_token = false, is_whole = true;
        for (int u = unit; u < unit + store.shape.units_per_row; ++u) {
          keeps_token = keeps_token || r.first_position(sequence, u, e) < length;
          is_whole = is_whole && r.before(sequence, u, e, length) == ~0ull;
          clear_from(store, r, sequence, u, e, length);
        }
        // A packed entry holds other positions of every unit. Those that have none left still count
        // as sealed by their first position.
        for (int u = unit; keeps_token && u < unit + store.shape.units_per_row; ++u) {
          std::int32_t& first = r.first_position(sequence, u, e);
          if (first >= length) store.memory.set(first, static_cast<std::int32_t>(length - 1));
        }
        if (!keeps_token) {
          store.drop_newest_entry(r, sequence, row, e);
          --count;
        } else if (exact && !store.shape.open &&
                   r.first_position(sequence, unit, e) >= sealed_end) {
          store.free_entry_page(r, sequence, row, e);
        } else if (is_whole) {
          break;  // and so are all older ones
        }
      }
      if (count != r.entry_count(sequence, row)) {
        store.memory.set(r.entry_count(sequence, row), count);
      }
    }
  }
  if (exact) {
    const std::int64_t by_rule =
        length <= grid.origin
            ? grid.origin
            : grid.origin + store.shape.tail.sealed_before(length - 1 - grid.origin);
    const bool keeps_rule = store.shape.open || sealed_end <= by_rule;
    grid.decoded_before = keeps_rule ? std::min(grid.decoded_before, sealed_end) : sealed_end;
    grid.sealed_end = sealed_end;
  } else {
    const std::int64_t origin = store.shape.open ? reopened_block(store, sequence, length) : length;
    grid = GridRecord{.origin = origin, .sealed_end = origin, .exact_begin = origin};
  }
  store.memory.wrote(&grid);
}

/// Takes back what reserve_step gave: the sequence is `length` tokens long again.
template <class Store>
void abandon_reserved(Store& store, int sequence, std::int64_t length) noexcept {
  GridRecord& grid = store.base.grids[sequence];
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const int unit = row * store.shape.units_per_row;
      int count = r.entry_count(sequence, row);
      for (int e = count - 1; e >= 0; --e) {
        const std::int64_t first = r.first_position(sequence, unit, e);
        if (first < grid.sealed_end) break;
        if (first >= length) {
          store.drop_newest_entry(r, sequence, row, e);
          --count;
          continue;
        }
        for (int u = unit; u < unit + store.shape.units_per_row; ++u) {
          clear_from(store, r, sequence, u, e, length);
        }
        if (!store.shape.open) store.free_entry_page(r, sequence, row, e);
      }
      if (count != r.entry_count(sequence, row)) {
        store.memory.set(r.entry_count(sequence, row), count);
      }
    }
  }
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
