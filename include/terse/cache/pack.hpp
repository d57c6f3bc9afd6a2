/// Packing of a row whose evictor scatters: survivors move into consecutive places.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/cache/packed_block.hpp"
#include "terse/cache/row_rewriter.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"

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
    std::uint64_t bits = r.live_mask(sequence, unit, e);
    if (bits == 0) continue;
    const std::int64_t last =
        r.position(sequence, unit, e, block_tokens - 1 - std::countl_zero(bits));
    while (bits != 0) {
      const std::int64_t next = r.position(sequence, unit, e, std::countr_zero(bits));
      if (fill == block_tokens || next - first > 0xffff) {
        ++blocks;
        fill = 0;
        first = next;
      }
      const int taken = last - first > 0xffff ? 1 : std::min(block_tokens - fill, count_ones(bits));
      bits = without_lowest(bits, taken);
      fill += taken;
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
    const std::size_t at = r.unit_entry(sequence, unit, *entry);
    const std::int32_t first = r.first_positions[at];
    const std::uint16_t* deltas = r.position_deltas + at * block_tokens;
    for (std::uint64_t bits = r.live[at] >> *token << *token; bits != 0; bits &= bits - 1) {
      const int t = std::countr_zero(bits);
      const std::int32_t position = first + deltas[t];
      if (n == block_tokens || (n > 0 && position - items[0].position > 0xffff)) {
        *token = t;
        return n;
      }
      items[n++] = {*entry, t, position};
    }
  }
  return n;
}

/// Packs the first `sealed` entries of a row into `packed`, block after block. Block b takes tokens
/// of entries b and later only, and uses up entry b.
template <class Store, class Target>
void pack_row(Store& store, const typename Store::Ref& r, int sequence, int row, int sealed,
              int packed, RowRewriter<Store, Target>& rewriter) noexcept {
  const int units = store.shape.units_per_row;
  std::int32_t* cursors = store.unit_cursors;  // [unit of the row, {entry, token, last position}]
  for (int i = 0; i < units * 3; ++i) cursors[i] = 0;
  for (int b = 0; b < packed; ++b) {
    rewriter.write(0, [&](int u) {
      std::int32_t* cursor = cursors + (u - row * units) * 3;
      const int count = next_tokens<Store>(r, sequence, u, sealed, cursor, cursor + 1, store.items);
      const std::int64_t first = count > 0 ? store.items[0].position : cursor[2];
      if (count > 0) cursor[2] = store.items[count - 1].position;
      return PackedTokens<Store>{store.items, count, first};
    });
    rewriter.drop(b);
  }
  for (int e = packed; e < sealed; ++e) rewriter.drop(e);
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
