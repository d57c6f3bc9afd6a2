/// Compaction of one policy class: live tokens of sealed blocks move together.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "terse/cache/evict.hpp"
#include "terse/cache/memory_plan.hpp"

namespace terse::detail {

/// Entries at the front of a row whose blocks are sealed.
template <class Store>
[[nodiscard]] int sealed_entries(const Store& store, const typename Store::Ref& r, int sequence,
                                 int row) noexcept {
  const int unit = row * store.shape.units_per_row;
  int n = 0;
  while (n < r.entry_count(sequence, row) &&
         r.first_position(sequence, unit, n) < store.base.grids[sequence].sealed_end) {
    ++n;
  }
  return n;
}

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

/// A row worth compacting: how many entries it has now and would have.
struct RowCompaction {
  int sealed = 0;
  int packed = 0;
};

template <class Store>
[[nodiscard]] RowCompaction plan_row(const Store& store, const typename Store::Ref& r, int sequence,
                                     int row) noexcept {
  RowCompaction plan;
  if constexpr (!Store::Ref::scatters) return plan;  // survivors are contiguous already
  plan.sealed = sealed_entries(store, r, sequence, row);
  for (int u = row * store.shape.units_per_row; u < (row + 1) * store.shape.units_per_row; ++u) {
    plan.packed = std::max(plan.packed, packed_blocks<Store>(r, sequence, u, plan.sealed));
  }
  return plan;
}

template <class Policy>
inline constexpr bool moves_exactly = Policy::key_codec::granularity ==
                                      Granularity::per_token&& Policy::value_codec::granularity ==
                                      Granularity::per_token&& requires(const CodecContext& c,
                                                                        const std::byte* from,
                                                                        std::byte* to) {
  Policy::key_codec::copy_token(c, from, 0, to, 0);
  Policy::value_codec::copy_token(c, from, 0, to, 0);
};

template <class Store>
void add_compact_plan(const Store& store, int sequence, CompactPlan* plan) noexcept {
  using Policy = typename Store::Ref::policy;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const RowCompaction own = plan_row(store, r, sequence, row);
      if (own.packed >= own.sealed) continue;
      if constexpr (Store::Ref::layout::paged) plan->pages_needed += own.packed;
      for (int e = 0; e < own.sealed; ++e) {
        if constexpr (Store::Ref::layout::paged) {
          if (store.pool.references(r.page_slot(sequence, row, e)) == 1) ++plan->pages_returned;
        } else {
          ++plan->pages_returned;
        }
        for (int u = row * store.shape.units_per_row; u < (row + 1) * store.shape.units_per_row;
             ++u) {
          const int live = std::popcount(r.live_mask(sequence, u, e));
          plan->tokens_moved += live;
          if constexpr (!moves_exactly<Policy>) plan->tokens_reencoded += live;
        }
      }
      plan->pages_returned -= own.packed;
    }
  }
}

/// Writes one packed block of a stream from the listed tokens.
template <class CodecPart, class Store>
void pack_stream(Store& store, const typename Store::Ref& r, int sequence, int unit, Side side,
                 std::size_t offset, const typename Store::Item* tokens, int count,
                 std::byte* out) noexcept {
  const CodecContext context{side,
                             side == Side::key ? store.shape.key_width : store.shape.value_width};
  if constexpr (moves_exactly<typename Store::Ref::policy>) {
    for (int i = 0; i < count; ++i) {
      CodecPart::copy_token(context, r.block(sequence, unit, tokens[i].entry) + offset,
                            tokens[i].token, out + offset, i);
    }
  } else {
    for (int i = 0; i < block_tokens; ++i) {
      // Unused places repeat the last token, so that they do not widen a group's range.
      const auto& item = tokens[i < count ? i : count - 1];
      for (int c = 0; c < context.width; ++c) {
        store.vectors[i * context.width + c] =
            CodecPart::decode(context, r.block(sequence, unit, item.entry) + offset, item.token, c);
      }
    }
    encode_block<CodecPart>(context, store.vectors, out + offset);
  }
}

template <class Store>
void compact_row(Store& store, const typename Store::Ref& r, int sequence, int row,
                 const RowCompaction& plan, std::int64_t length) noexcept {
  using Policy = typename Store::Ref::policy;
  const ClassShape& shape = store.shape;
  const auto page_at = [&](std::int32_t page) {
    return r.pages + static_cast<std::size_t>(page) * shape.page_bytes;
  };
  const int row_unit = row * shape.units_per_row;
  // New pages first: sealed bytes may be shared with other sequences and never change. They are
  // remembered in the key scratch, which list_tokens leaves alone.
  auto* fresh = reinterpret_cast<std::int32_t*>(store.item_keys);
  if constexpr (Store::Ref::layout::paged) {
    for (int b = 0; b < plan.packed; ++b) fresh[b] = store.take_page();
  }
  for (int u = row_unit; u < row_unit + shape.units_per_row; ++u) {
    int n = list_tokens(store, r, sequence, u, length);
    while (n > 0 && store.items[n - 1].entry >= plan.sealed) --n;
    int next = 0;
    std::int32_t last_position = n > 0 ? store.items[n - 1].position : 0;
    for (int b = 0; b < plan.packed; ++b) {
      const auto* tokens = store.items + next;
      int count = 0;
      while (next + count < n && count < block_tokens &&
             tokens[count].position - tokens[0].position <= 0xffff) {
        ++count;
      }
      const std::size_t at = r.unit_entry(sequence, u, b);
      if (count > 0) {
        std::byte* out;
        if constexpr (Store::Ref::layout::paged) {
          out = page_at(fresh[b]) + static_cast<std::size_t>(u - row_unit) * shape.unit_bytes;
        } else {
          // Packed tokens come from this place or later ones: the block is built aside.
          out = reinterpret_cast<std::byte*>(store.item_keys);
          std::memset(out, 0, shape.unit_bytes);
        }
        for (int s = 0; s < shape.unit.key_streams; ++s) {
          pack_stream<typename Policy::key_codec>(store, r, sequence, u, Side::key,
                                                  shape.key_offset(s), tokens, count, out);
        }
        for (int s = 0; s < shape.unit.value_streams; ++s) {
          pack_stream<typename Policy::value_codec>(store, r, sequence, u, Side::value,
                                                    shape.value_offset(s), tokens, count, out);
        }
        if constexpr (!Store::Ref::layout::paged) {
          std::memcpy(r.block(sequence, u, b), out, shape.unit_bytes);
        }
      }
      r.first_positions[at] = count > 0 ? tokens[0].position : last_position;
      r.live[at] = count == block_tokens ? ~0ull : (1ull << count) - 1;
      for (int t = 0; t < block_tokens; ++t) {
        const int source = t < count ? t : count - 1;
        if constexpr (Store::Ref::scatters) {
          r.position_deltas[at * block_tokens + static_cast<std::size_t>(t)] =
              count == 0 ? std::uint16_t{0}
                         : static_cast<std::uint16_t>(tokens[source].position - tokens[0].position);
        }
        if constexpr (Store::has_state) {
          if (t < count) {
            const std::size_t from = r.unit_entry(sequence, u, tokens[t].entry) * block_tokens +
                                     static_cast<std::size_t>(tokens[t].token);
            r.token_states[at * block_tokens + static_cast<std::size_t>(t)] = r.token_states[from];
          }
        }
      }
      next += count;
    }
  }
  if constexpr (Store::Ref::layout::paged) {
    for (int e = 0; e < plan.sealed; ++e) store.free_entry_page(r, sequence, row, e);
    for (int b = 0; b < plan.packed; ++b) r.page_slot(sequence, row, b) = fresh[b];
  }
  int& count = r.entry_count(sequence, row);
  for (int e = plan.sealed; e < count; ++e) {
    store.move_entry(r, sequence, row, e, plan.packed + e - plan.sealed);
  }
  count -= plan.sealed - plan.packed;
}

template <class Store>
void compact_sequence(Store& store, int sequence, std::int64_t length) noexcept {
  bool any = false;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const RowCompaction plan = plan_row(store, r, sequence, row);
      if (plan.packed >= plan.sealed) continue;
      compact_row(store, r, sequence, row, plan, length);
      any = true;
    }
  }
  GridRecord& grid = store.base.grids[sequence];
  if (any) grid.exact_begin = grid.sealed_end;
}

}  // namespace terse::detail
