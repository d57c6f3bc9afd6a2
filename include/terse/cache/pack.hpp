/// Packing of a row whose evictor scatters: survivors move into consecutive places.
#pragma once

#include <bit>
#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/cache/packed_block.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Blocks that the live tokens of the first `entries` entries of a unit fill. A block also ends
/// where a position would lie more than 65535 behind the block's first.
template <class Store>
[[nodiscard]] int packed_blocks(const typename Store::Ref& r, int sequence, int unit,
                                int entries) noexcept {
  int blocks = 0, fill = block_tokens;
  std::int64_t first = 0;
  for (int e = 0; e < entries; ++e) {
    for (std::uint64_t bits = r.live_mask(sequence, unit, e); bits != 0; bits &= bits - 1) {
      const std::int64_t p = r.position(sequence, unit, e, std::countr_zero(bits));
      if (fill == block_tokens || p - first > 0xffff) {
        ++blocks;
        fill = 0;
        first = p;
      }
      ++fill;
    }
  }
  return blocks;
}

/// Lists up to 64 live tokens of a unit from `*entry`, `*token` on, none more than 65535 positions
/// behind the first, and moves the two behind them. Returns their number.
template <class Store>
[[nodiscard]] int next_tokens(const typename Store::Ref& r, int sequence, int unit, int sealed,
                              std::int32_t* entry, std::int32_t* token,
                              typename Store::Item* items) noexcept {
  int n = 0;
  for (; *entry < sealed; ++*entry, *token = 0) {
    std::uint64_t bits = r.live_mask(sequence, unit, *entry) >> *token << *token;
    for (; bits != 0; bits &= bits - 1) {
      *token = std::countr_zero(bits);
      const auto position = static_cast<std::int32_t>(r.position(sequence, unit, *entry, *token));
      if (n == block_tokens || (n > 0 && position - items[0].position > 0xffff)) return n;
      items[n++] = {*entry, *token, position};
    }
  }
  return n;
}

/// Packs the first `sealed` entries of a row into `packed`, block after block. Block b takes tokens
/// of entries b and later only, and uses up entry b, so one spare page is enough. Sealed bytes may
/// be shared with other sequences and are never overwritten.
template <class Store>
void pack_row(Store& store, const typename Store::Ref& r, int sequence, int row, int sealed,
              int packed) noexcept {
  const ClassShape& shape = store.shape;
  const int row_unit = row * shape.units_per_row;
  std::int32_t* cursors = store.unit_cursors;  // [unit of the row, {entry, token, last position}]
  for (int i = 0; i < shape.units_per_row * 3; ++i) cursors[i] = 0;
  for (int b = 0; b < packed; ++b) {
    std::int32_t page = no_page;
    if constexpr (Store::Ref::layout::paged) page = store.take_page();
    for (int u = row_unit; u < row_unit + shape.units_per_row; ++u) {
      std::int32_t* cursor = cursors + (u - row_unit) * 3;
      const int count = next_tokens<Store>(r, sequence, u, sealed, cursor, cursor + 1, store.items);
      const std::int64_t first = count > 0 ? store.items[0].position : cursor[2];
      if (count > 0) cursor[2] = store.items[count - 1].position;
      write_packed(store, r, sequence, u, b, page, PackedTokens<Store>{store.items, count, first});
    }
    if constexpr (Store::Ref::layout::paged) {
      store.free_entry_page(r, sequence, row, b);
      r.page_slot(sequence, row, b) = page;
    }
  }
  for (int e = packed; e < sealed; ++e) store.free_entry_page(r, sequence, row, e);
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
