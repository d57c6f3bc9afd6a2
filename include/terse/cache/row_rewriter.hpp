/// Rewriting of a row of entries into fewer ones.
#pragma once

#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/cache/packed_block.hpp"
#include "terse/cache/retired_pages.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Makes the entries of a row anew, front to back, each from the entry in its place or later ones:
/// then one spare page is enough if no other sequence shares them. Shared bytes are never
/// overwritten. `Target` does what is to be done to blocks. It is told of each row, whose first
/// `sealed` entries may be rewritten,
///
///   void begin_row(const Ref& r, int row, int sealed);
///   void end_row();
///
/// and between them of each new entry, that it is `entry`, before the tables say so, or a new block
/// in a page, whose place in the table still names the old one; tokens of every unit follow:
///
///   void keep(int entry);
///   void begin_block(std::int32_t page, std::int64_t first);
///   void write(const Ref& r, int sequence, int unit, int entry, std::int32_t page,
///              const PackedTokens<Store>& tokens);
///
/// In front of a block, and behind the last row, it may be told to see to it that all that was
/// before is done before anything that follows:
///
///   void settle();
template <class Store, class Target>
class RowRewriter {
 public:
  using Ref = typename Store::Ref;

  RowRewriter(Store& store, Target& target, int sequence) noexcept
      : store_(store), target_(target), sequence_(sequence), retired_(store.pool) {}

  void begin_row(const Ref& r, int row, int sealed) noexcept {
    r_ = r;
    row_ = row;
    next_ = 0;
    retired_.begin_row();
    target_.begin_row(r_, row, sealed);
  }
  /// The next entry is `entry` as it is.
  void keep(int entry) noexcept {
    place_page();
    target_.keep(entry);
    if (entry != next_) {
      store_.move_entry(r_, sequence_, row_, entry, next_);
      if constexpr (paged) r_.page_slot(sequence_, row_, entry) = no_page;
    }
    ++next_;
  }
  /// The next entry is a new block, of the tokens that `list(unit)` gives. `first`: its position,
  /// where that is the same for all units.
  template <class List>
  void write(std::int64_t first, List&& list) noexcept {
    place_page();
    if constexpr (paged) {
      if (retired_.must_settle()) settle();
      page_ = retired_.take();
    }
    written_ = next_++;
    target_.begin_block(page_, first);
    const int units = store_.shape.units_per_row;
    for (int u = row_ * units; u < (row_ + 1) * units; ++u) {
      target_.write(r_, sequence_, u, written_, page_, list(u));
    }
  }
  /// Gives up an entry of which nothing is left to write.
  void drop(int entry) noexcept {
    if constexpr (paged) {
      std::int32_t& page = r_.page_slot(sequence_, row_, entry);
      if (page != no_page) retired_.drop(page);
      page = no_page;
    }
  }
  void end_row() noexcept {
    place_page();
    r_.entry_count(sequence_, row_) = next_;
    target_.end_row();
  }
  void settle() noexcept {
    target_.settle();
    if constexpr (paged) retired_.settle();
  }

 private:
  static constexpr bool paged = Ref::layout::paged;

  /// The page of the block written last goes into the table when its place's old one is out.
  void place_page() noexcept {
    if constexpr (paged) {
      if (written_ >= 0) r_.page_slot(sequence_, row_, written_) = page_;
    }
    written_ = -1;
  }

  Store& store_;
  Target& target_;
  int sequence_;
  RetiredPages retired_;
  Ref r_{};
  int row_ = 0;
  int next_ = 0;      // entry to be made
  int written_ = -1;  // block whose page is not yet in the table
  std::int32_t page_ = no_page;
};

/// Blocks in the memory of this processor are written at once.
template <class Store>
struct HostBlocks {
  using Ref = typename Store::Ref;

  Store& store;

  static void begin_row(const Ref&, int, int) noexcept {}
  static void keep(int) noexcept {}
  void begin_block(std::int32_t page, std::int64_t) const noexcept {
    if constexpr (Ref::layout::paged) store.clear_page(page);
  }
  void write(const Ref& r, int sequence, int unit, int entry, std::int32_t page,
             const PackedTokens<Store>& tokens) const noexcept {
    write_packed(store, r, sequence, unit, entry, page, tokens);
  }
  static void end_row() noexcept {}
  static void settle() noexcept {}
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
