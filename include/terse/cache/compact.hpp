/// Compaction: live tokens of sealed blocks move together.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/evict.hpp"
#include "terse/cache/join.hpp"
#include "terse/cache/memory_plan.hpp"
#include "terse/cache/pack.hpp"
#include "terse/cache/row_rewriter.hpp"
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

/// A row worth compacting: how many sealed entries it has now and would have.
struct RowCompaction {
  int sealed = 0;
  int packed = 0;
  bool rewrites = false;  ///< false: entries without a live token go, nothing else happens
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
    plan.rewrites = plan.packed < plan.sealed;
  } else {
    int kept = 0;
    for (int e = 0; e < plan.sealed; ++e) {
      if (!is_dead_entry(r, sequence, row, e)) ++kept;
    }
    plan.packed = joined_blocks(r, sequence, row, plan.sealed);
    plan.rewrites = plan.packed < kept;
    if (!plan.rewrites) plan.packed = kept;
  }
  return plan;
}

/// What compacting a sequence in this class would need and give.
template <class Store>
[[nodiscard]] CompactPlan plan_compaction(const Store& store, int sequence) noexcept {
  using Policy = typename Store::Ref::policy;
  constexpr bool paged = Store::Ref::layout::paged;
  CompactPlan plan;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const RowCompaction own = plan_row(store, r, sequence, row);
      if (own.packed >= own.sealed) continue;
      const int unit = row * store.shape.units_per_row;
      const auto take = [&] {
        if (paged) plan.pages_needed = std::max(plan.pages_needed, 1 - plan.pages_returned);
        --plan.pages_returned;
      };
      const auto drop = [&](int e) {
        if constexpr (paged) {
          if (store.pool.references(r.page_slot(sequence, row, e)) > 1) return;
        }
        ++plan.pages_returned;
      };
      const auto move = [&](std::int64_t tokens) {
        plan.tokens_moved += tokens;
        if constexpr (!moves_exactly<Policy>) plan.tokens_reencoded += tokens;
      };
      if constexpr (Store::Ref::scatters) {
        // Block after block, a page is taken and the place's old one dropped.
        for (int e = 0; e < own.sealed; ++e) {
          if (e < own.packed) take();
          drop(e);
          for (int u = unit; u < unit + store.shape.units_per_row; ++u) {
            move(std::popcount(r.live_mask(sequence, u, e)));
          }
        }
      } else if (own.rewrites) {
        for_each_joined(
            r, sequence, row, own.sealed, [](int, int) {},
            [&](int, const JoinedBlock& block) {
              take();
              for (int u = unit; u < unit + store.shape.units_per_row; ++u) {
                move(count_joined(r, sequence, u, block));
              }
            },
            drop);
      } else {
        for (int e = 0; e < own.sealed; ++e) {
          if (is_dead_entry(r, sequence, row, e)) drop(e);
        }
      }
    }
  }
  return plan;
}

template <class Store, class Target>
void compact_row(Store& store, const typename Store::Ref& r, int sequence, int row,
                 const RowCompaction& plan, RowRewriter<Store, Target>& rewriter) noexcept {
  const int count = r.entry_count(sequence, row);
  rewriter.begin_row(r, row, plan.sealed);
  if (!plan.rewrites) {
    for (int e = 0; e < plan.sealed; ++e) {
      if (is_dead_entry(r, sequence, row, e)) {
        rewriter.drop(e);
      } else {
        rewriter.keep(e);
      }
    }
  } else if constexpr (Store::Ref::scatters) {
    pack_row(store, r, sequence, row, plan.sealed, plan.packed, rewriter);
  } else {
    join_row(store, r, sequence, row, plan.sealed, rewriter);
  }
  for (int e = plan.sealed; e < count; ++e) rewriter.keep(e);
  rewriter.end_row();
}

/// Compacts the rows of a sequence; `target`: as in RowRewriter. A row that is rewritten has no
/// exact copies of sealed tokens any longer.
template <class Store, class Target>
void compact_class(Store& store, int sequence, Target& target) noexcept {
  RowRewriter<Store, Target> rewriter(store, target, sequence);
  bool any = false;
  for (int s = 0; s < store.shape.slots; ++s) {
    const auto r = store.ref(s);
    for (int row = 0; row < store.shape.rows; ++row) {
      const RowCompaction plan = plan_row(store, r, sequence, row);
      if (plan.packed >= plan.sealed) continue;
      compact_row(store, r, sequence, row, plan, rewriter);
      any = any || plan.rewrites;
    }
  }
  rewriter.settle();
  GridRecord& grid = store.base.grids[sequence];
  if (any) grid.exact_begin = grid.sealed_end;
}

/// Plans of all classes together. `missing`: free pages that a class lacks.
template <class State>
[[nodiscard]] Expected<CompactPlan> plan_compact(const State& state, SequenceId sequence,
                                                 std::int64_t* missing = nullptr) noexcept {
  if (Status s = state.check_idle(sequence); !s.ok()) return s;
  CompactPlan total;
  state.for_each_store([&](const auto& store) {
    const CompactPlan own = plan_compaction(store, sequence.index);
    total += own;
    if constexpr (State::layout::paged) {
      const std::int64_t lacks = own.pages_needed - store.pool.free_pages();
      if (missing != nullptr && lacks > 0) *missing = lacks;
    }
  });
  return total;
}

/// As plan_compact, or why it cannot be done.
template <class State>
[[nodiscard]] Expected<CompactPlan> check_compact(const State& state, SequenceId sequence,
                                                  bool allow_reencoding) noexcept {
  std::int64_t missing = 0;
  Expected<CompactPlan> planned = plan_compact(state, sequence, &missing);
  if (!planned.ok()) return planned.status();
  if (planned->tokens_reencoded > 0 && !allow_reencoding) {
    return error(StatusCode::would_be_lossy,
                 "terse::KVCache::compact: tokens share scales and would be encoded again; pass "
                 "allow_reencoding; detail: tokens",
                 planned->tokens_reencoded);
  }
  if (missing > 0) {
    return error(StatusCode::no_free_pages,
                 "terse::KVCache::compact: too few free pages; detail: pages missing", missing);
  }
  return planned;
}

template <class State>
Expected<CompactPlan> compact_sequence(State& state, SequenceId sequence,
                                       bool allow_reencoding) noexcept {
  static_assert(std::is_same_v<typename State::Memory, HostMemory>);
  Expected<CompactPlan> planned = check_compact(state, sequence, allow_reencoding);
  if (!planned.ok()) return planned.status();
  state.for_each_store([&](auto& store) {
    HostBlocks<std::remove_cvref_t<decltype(store)>> blocks{store};
    compact_class(store, sequence.index, blocks);
  });
  return planned;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
