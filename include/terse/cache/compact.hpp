/// Compaction: live tokens of sealed blocks move together.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "terse/cache/evict.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

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

/// A row worth compacting: how many sealed entries it has now and would have.
struct RowCompaction {
  int sealed = 0;
  int packed = 0;
};

template <class Store>
[[nodiscard]] RowCompaction plan_row(const Store& store, const typename Store::Ref& r, int sequence,
                                     int row) noexcept {
  RowCompaction plan;
  plan.sealed = sealed_entries(store, r, sequence, row);
  if constexpr (Store::Ref::scatters) {
    for (int u = row * store.shape.units_per_row; u < (row + 1) * store.shape.units_per_row; ++u) {
      plan.packed = std::max(plan.packed, packed_blocks<Store>(r, sequence, u, plan.sealed));
    }
  } else {
    // Survivors are contiguous already: only dead entries go.
    for (int e = 0; e < plan.sealed; ++e) {
      if (!is_dead_entry(store, r, sequence, row, e)) ++plan.packed;
    }
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

/// What compacting a sequence in this class would need and give.
template <class Store>
[[nodiscard]] CompactPlan plan_compaction(const Store& store, int sequence) noexcept {
  using Policy = typename Store::Ref::policy;
  CompactPlan plan;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const RowCompaction own = plan_row(store, r, sequence, row);
      if (own.packed >= own.sealed) continue;
      constexpr bool paged = Store::Ref::layout::paged;
      const auto is_sole_owner = [&](int e) {
        if constexpr (paged) return store.pool.references(r.page_slot(sequence, row, e)) == 1;
        return true;
      };
      if constexpr (!Store::Ref::scatters) {
        for (int e = 0; e < own.sealed; ++e) {
          if (is_dead_entry(store, r, sequence, row, e) && is_sole_owner(e)) ++plan.pages_returned;
        }
        continue;
      }
      // Block after block, a page is taken and the place's old one dropped.
      for (int e = 0; e < own.sealed; ++e) {
        if (paged && e < own.packed) {
          plan.pages_needed = std::max(plan.pages_needed, 1 - plan.pages_returned);
          --plan.pages_returned;
        }
        if (is_sole_owner(e)) ++plan.pages_returned;
        for (int u = row * store.shape.units_per_row; u < (row + 1) * store.shape.units_per_row;
             ++u) {
          const int live = std::popcount(r.live_mask(sequence, u, e));
          plan.tokens_moved += live;
          if constexpr (!moves_exactly<Policy>) plan.tokens_reencoded += live;
        }
      }
      if (!paged) plan.pages_returned -= own.packed;
    }
  }
  return plan;
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

/// Writes positions, mask and evictor state of a packed entry.
template <class Store>
void describe_packed(const typename Store::Ref& r, int sequence, int unit, int entry,
                     const typename Store::Item* tokens, int count,
                     std::int32_t last_position) noexcept {
  const std::size_t at = r.unit_entry(sequence, unit, entry);
  // Tokens only move to the front, so each place is read before it is written.
  for (int t = 0; t < block_tokens; ++t) {
    const auto place = at * block_tokens + static_cast<std::size_t>(t);
    if constexpr (Store::has_state) {
      if (t < count) {
        r.token_states[place] =
            r.token_states[r.unit_entry(sequence, unit, tokens[t].entry) * block_tokens +
                           static_cast<std::size_t>(tokens[t].token)];
      }
    }
    if constexpr (Store::Ref::scatters) {
      const int source = t < count ? t : count - 1;
      r.position_deltas[place] =
          count == 0 ? std::uint16_t{0}
                     : static_cast<std::uint16_t>(tokens[source].position - tokens[0].position);
    }
  }
  r.first_positions[at] = count > 0 ? tokens[0].position : last_position;
  r.live[at] = count == block_tokens ? ~0ull : (1ull << count) - 1;
}

/// Packs a row block after block. Block b takes tokens of entries b and later only, and uses up
/// entry b, so one spare page is enough. Sealed bytes may be shared with other sequences and are
/// never overwritten.
template <class Store>
void compact_row(Store& store, const typename Store::Ref& r, int sequence, int row,
                 const RowCompaction& plan) noexcept {
  using Policy = typename Store::Ref::policy;
  const ClassShape& shape = store.shape;
  const int row_unit = row * shape.units_per_row;
  std::int32_t* cursors = store.unit_cursors;  // [unit of the row, {entry, token, last position}]
  for (int i = 0; i < shape.units_per_row * 3; ++i) cursors[i] = 0;
  for (int b = 0; b < plan.packed; ++b) {
    std::int32_t page = no_page;
    if constexpr (Store::Ref::layout::paged) page = store.take_page();
    for (int u = row_unit; u < row_unit + shape.units_per_row; ++u) {
      std::int32_t* cursor = cursors + (u - row_unit) * 3;
      const int count =
          next_tokens<Store>(r, sequence, u, plan.sealed, cursor, cursor + 1, store.items);
      if (count > 0) {
        std::byte* out;
        if constexpr (Store::Ref::layout::paged) {
          out = r.pages + static_cast<std::size_t>(page) * shape.page_bytes +
                static_cast<std::size_t>(u - row_unit) * shape.unit_bytes;
        } else {
          out = reinterpret_cast<std::byte*>(store.item_keys);
          std::memset(out, 0, shape.unit_bytes);
        }
        for (int s = 0; s < shape.unit.key_streams; ++s) {
          pack_stream<typename Policy::key_codec>(store, r, sequence, u, Side::key,
                                                  shape.key_offset(s), store.items, count, out);
        }
        for (int s = 0; s < shape.unit.value_streams; ++s) {
          pack_stream<typename Policy::value_codec>(store, r, sequence, u, Side::value,
                                                    shape.value_offset(s), store.items, count, out);
        }
        if constexpr (!Store::Ref::layout::paged) {
          std::memcpy(r.block(sequence, u, b), out, shape.unit_bytes);
        }
        cursor[2] = store.items[count - 1].position;
      }
      describe_packed<Store>(r, sequence, u, b, store.items, count, cursor[2]);
    }
    if constexpr (Store::Ref::layout::paged) {
      store.free_entry_page(r, sequence, row, b);
      r.page_slot(sequence, row, b) = page;
    }
  }
  for (int e = plan.packed; e < plan.sealed; ++e) store.free_entry_page(r, sequence, row, e);
  int& count = r.entry_count(sequence, row);
  for (int e = plan.sealed; e < count; ++e) {
    store.move_entry(r, sequence, row, e, plan.packed + e - plan.sealed);
  }
  count -= plan.sealed - plan.packed;
}

template <class Store>
void compact_class(Store& store, int sequence) noexcept {
  bool any = false;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const RowCompaction plan = plan_row(store, r, sequence, row);
      if (plan.packed >= plan.sealed) continue;
      if constexpr (Store::Ref::scatters) {
        compact_row(store, r, sequence, row, plan);
        any = true;
      } else {
        drop_dead_entries(store, r, sequence, row);
      }
    }
  }
  GridRecord& grid = store.base.grids[sequence];
  if (any) grid.exact_begin = grid.sealed_end;
}

template <class State>
[[nodiscard]] Expected<CompactPlan> plan_compact(const State& state, SequenceId sequence) noexcept {
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  CompactPlan total;
  state.for_each_store([&](const auto& store) { total += plan_compaction(store, sequence.index); });
  return total;
}

template <class State>
Expected<CompactPlan> compact_sequence(State& state, SequenceId sequence,
                                       bool allow_reencoding) noexcept {
  Expected<CompactPlan> planned = plan_compact(state, sequence);
  if (!planned.ok()) return planned.status();
  if (planned->tokens_reencoded > 0 && !allow_reencoding) {
    return error(StatusCode::would_be_lossy,
                 "terse::KVCache::compact: tokens share scales and would be encoded again; pass "
                 "allow_reencoding; detail: tokens",
                 planned->tokens_reencoded);
  }
  Status status{};
  state.for_each_store([&](const auto& store) {
    const CompactPlan own = plan_compaction(store, sequence.index);
    if constexpr (State::layout::paged) {
      if (own.pages_needed > store.pool.free_pages()) {
        status = error(StatusCode::no_free_pages,
                       "terse::KVCache::compact: too few free pages; detail: pages missing",
                       own.pages_needed - store.pool.free_pages());
      }
    }
  });
  if (!status.ok()) return status;
  state.for_each_store([&](auto& store) { compact_class(store, sequence.index); });
  return planned;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
