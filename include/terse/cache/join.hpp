/// Joining of a row whose evictor does not scatter: blocks that truncate or evict cut short become
/// whole ones again.
#pragma once

#include <bit>
#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/cache/packed_block.hpp"
#include "terse/cache/row_rewriter.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// One block that joining makes of a row's sealed entries: it covers 64 positions from its oldest
/// live token.
struct JoinedBlock {
  std::int64_t first = 0;
  int begin_entry = 0;   ///< entries that have tokens in it: from this one
  int end_entry = 0;     ///< to this one, without it
  int used_entries = 0;  ///< entries before this one have no token left for later blocks
  bool is_whole = true;  ///< it is one entry with all its tokens
};

/// Divides the live tokens of the sealed entries of a row into as few blocks as possible, oldest
/// first. Entries may be overwritten as soon as they are used up.
template <class Ref>
class JoinWalk {
 public:
  JoinWalk(const Ref& r, int sequence, int row, int sealed) noexcept
      : r_(r), sequence_(sequence), unit_(row * r.shape.units_per_row), sealed_(sealed) {}

  [[nodiscard]] bool next(JoinedBlock* block) noexcept {
    if (!advance()) return false;
    *block = JoinedBlock{.first = first_ + std::countr_zero(left_), .begin_entry = entry_};
    block->is_whole = is_untouched_;
    while (true) {
      const std::int64_t places = block->first + block_tokens - first_;
      if (places <= 0) break;
      const std::uint64_t inside = places >= block_tokens ? ~0ull : (1ull << places) - 1;
      if ((left_ & inside) == 0) break;
      if (entry_ != block->begin_entry) block->is_whole = false;
      block->end_entry = entry_ + 1;
      left_ &= ~inside;
      is_untouched_ = false;
      if (left_ != 0) {
        block->is_whole = false;
        break;
      }
      if (!advance()) break;
    }
    block->used_entries = left_ != 0 ? entry_ : sealed_;
    return true;
  }

 private:
  /// Goes to the next entry if this one has no token left.
  [[nodiscard]] bool advance() noexcept {
    while (left_ == 0 && entry_ + 1 < sealed_) {
      ++entry_;
      first_ = r_.first_position(sequence_, unit_, entry_);
      for (int u = unit_; u < unit_ + r_.shape.units_per_row; ++u) {
        left_ |= r_.live_mask(sequence_, u, entry_);
      }
      is_untouched_ = true;
    }
    return left_ != 0;
  }

  const Ref& r_;
  int sequence_, unit_, sealed_;
  int entry_ = -1;
  std::int64_t first_ = 0;  // position of the entry's place 0
  std::uint64_t left_ = 0;  // its live places, of any unit, that no block has taken
  bool is_untouched_ = true;
};

/// Blocks that joining the first `sealed` entries of a row would make.
template <class Ref>
[[nodiscard]] int joined_blocks(const Ref& r, int sequence, int row, int sealed) noexcept {
  JoinWalk<Ref> walk(r, sequence, row, sealed);
  int blocks = 0;
  for (JoinedBlock block; walk.next(&block);) ++blocks;
  return blocks;
}

/// The order in which joining proceeds: `keep(b, entry)` makes a whole entry block b,
/// `rewrite(b, block)` writes block b anew, `drop(entry)` gives up an entry without live tokens or
/// whose tokens have been written elsewhere. Block b takes tokens of entries b and later only.
template <class Ref, class Keep, class Rewrite, class Drop>
void for_each_joined(const Ref& r, int sequence, int row, int sealed, Keep&& keep,
                     Rewrite&& rewrite, Drop&& drop) {
  JoinWalk<Ref> walk(r, sequence, row, sealed);
  JoinedBlock block;
  int b = 0, dropped = 0;
  for (; walk.next(&block); ++b) {
    for (; dropped < block.begin_entry; ++dropped) drop(dropped);
    if (block.is_whole) {
      dropped = block.begin_entry + 1;
      keep(b, block.begin_entry);
    } else {
      rewrite(b, block);
    }
    for (; dropped < block.used_entries; ++dropped) drop(dropped);
  }
  for (; dropped < sealed; ++dropped) drop(dropped);
}

/// Live tokens of an entry of a unit that belong to a joined block.
template <class Ref>
[[nodiscard]] std::uint64_t joined_mask(const Ref& r, int sequence, int unit, int entry,
                                        const JoinedBlock& block) noexcept {
  return r.live_mask(sequence, unit, entry) &
         r.before(sequence, unit, entry, block.first + block_tokens) &
         ~r.before(sequence, unit, entry, block.first);
}

template <class Ref>
[[nodiscard]] int count_joined(const Ref& r, int sequence, int unit,
                               const JoinedBlock& block) noexcept {
  int n = 0;
  for (int e = block.begin_entry; e < block.end_entry; ++e) {
    n += std::popcount(joined_mask(r, sequence, unit, e, block));
  }
  return n;
}

/// Lists the tokens of a unit that belong to a joined block. Returns their number.
template <class Store>
[[nodiscard]] int list_joined(Store& store, const typename Store::Ref& r, int sequence, int unit,
                              const JoinedBlock& block) noexcept {
  int n = 0;
  for (int e = block.begin_entry; e < block.end_entry; ++e) {
    std::uint64_t bits = joined_mask(r, sequence, unit, e, block);
    for (; bits != 0; bits &= bits - 1) {
      const int t = std::countr_zero(bits);
      store.items[n++] = {e, t, static_cast<std::int32_t>(r.position(sequence, unit, e, t))};
    }
  }
  return n;
}

/// Joins the first `sealed` entries of a row.
template <class Store, class Target>
void join_row(Store& store, const typename Store::Ref& r, int sequence, int row, int sealed,
              RowRewriter<Store, Target>& rewriter) noexcept {
  for_each_joined(
      r, sequence, row, sealed, [&](int, int entry) { rewriter.keep(entry); },
      [&](int, const JoinedBlock& block) {
        rewriter.write(block.first, [&](int u) {
          const int count = list_joined(store, r, sequence, u, block);
          return PackedTokens<Store>{store.items, count, block.first};
        });
      },
      [&](int entry) { rewriter.drop(entry); });
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
