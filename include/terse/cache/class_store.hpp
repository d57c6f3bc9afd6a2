/// Storage of one policy class: the tables of its slots, its page pool and its scratch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/cache/host_memory.hpp"
#include "terse/cache/page_pool.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Hands out consecutive aligned ranges of a buffer; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base = nullptr) noexcept : base_(base) {}
  template <class T>
  T* take(std::size_t count) noexcept {
    used_ = round_up(used_, std::size_t{64});
    T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += count * sizeof(T);
    return at;
  }
  [[nodiscard]] std::size_t used_bytes() const noexcept {
    return round_up(used_, record_align_bytes);
  }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

/// `Memory`: how its bytes are reached (host_memory.hpp).
template <Layout L, class Policy, class MemoryPart = HostMemory>
struct ClassStore {
  using Memory = MemoryPart;
  using Ref = KVCacheRef<L, Policy>;
  using TokenState = typename Ref::TokenState;
  using Item = typename TokenList<TokenState>::Item;
  static constexpr bool has_state = token_state_bytes<typename Policy::evictor> > 0;

  ClassShape shape{};
  [[no_unique_address]] Memory memory{};
  Ref base{};                                    // of slot 0; the others follow at fixed strides
  const ProjectionFactors* factors = nullptr;    // [slot]
  const SlotCalibration* calibration = nullptr;  // [slot]; null: none
  std::uint64_t calibration_identity = 0;
  PagePool pool{};
  bool borrows_pages = false;
  Item* items = nullptr;  // scratch of evict and compact, one unit
  std::uint64_t* item_keys = nullptr;
  std::int32_t* unit_cursors = nullptr;  // scratch of compact, [unit, 3]
  float* vectors = nullptr;              // scratch of encoding, [64, widest stream]

  /// Places all arrays in the state buffer that `carver` divides.
  void carve_state(Carver& carver) noexcept {
    const auto slots = static_cast<std::size_t>(shape.slots);
    const auto sequences = static_cast<std::size_t>(shape.sequences);
    const auto entries = static_cast<std::size_t>(shape.entries);
    const std::size_t rows = slots * sequences * static_cast<std::size_t>(shape.rows);
    const std::size_t unit_entries =
        slots * sequences * static_cast<std::size_t>(shape.unit.units) * entries;
    base.grids = carver.template take<GridRecord>(sequences);
    base.appended = carver.template take<std::uint8_t>(slots * sequences);
    base.entry_counts = carver.template take<std::int32_t>(rows);
    if constexpr (L::paged) {
      base.page_table = carver.template take<std::int32_t>(rows * entries);
      auto* record = carver.template take<PoolRecord>(1);
      auto* free_list =
          carver.template take<std::int32_t>(static_cast<std::size_t>(shape.num_pages));
      auto* references =
          carver.template take<std::int32_t>(static_cast<std::size_t>(shape.num_pages));
      pool = PagePool(record, free_list, references);
    }
    base.live = carver.template take<std::uint64_t>(unit_entries);
    base.first_positions = carver.template take<std::int32_t>(unit_entries);
    if constexpr (Ref::scatters) {
      base.position_deltas = carver.template take<std::uint16_t>(unit_entries * block_tokens);
    }
    if constexpr (has_state) {
      base.token_states = carver.template take<TokenState>(unit_entries * block_tokens);
    }
    items = carver.template take<Item>(entries * block_tokens);
    // Also the place where compact builds a block of a contiguous layout, and fingerprints one.
    std::size_t block_bytes = shape.unit_bytes;
    if constexpr (!has_f16_tail<typename Ref::policy>) {
      block_bytes = std::max({block_bytes, shape.tail_key_bytes, shape.tail_value_bytes});
    }
    const std::size_t block_words = block_bytes / sizeof(std::uint64_t);
    item_keys = carver.template take<std::uint64_t>(
        entries * block_tokens > block_words ? entries * block_tokens : block_words);
    unit_cursors =
        carver.template take<std::int32_t>(static_cast<std::size_t>(shape.unit.units) * 3);
    const int widest = shape.key_width > shape.value_width ? shape.key_width : shape.value_width;
    vectors =
        carver.template take<float>(std::size_t{block_tokens} * static_cast<std::size_t>(widest));
  }

  [[nodiscard]] std::size_t pages_bytes() const noexcept {
    return static_cast<std::size_t>(shape.num_pages) * shape.page_bytes;
  }
  [[nodiscard]] std::size_t tails_bytes() const noexcept {
    return static_cast<std::size_t>(shape.slots) * static_cast<std::size_t>(shape.sequences) *
           static_cast<std::size_t>(shape.unit.units) * shape.tail_stride_bytes;
  }

  [[nodiscard]] Ref ref(int slot) const noexcept {
    Ref r = base.of_slot(slot);
    if constexpr (Policy::projects) r.factors = factors[slot];
    if constexpr (uses_calibration<Policy>) {
      if (calibration != nullptr) r.calibration = calibration[slot];
    }
    return r;
  }

  /// Empties the tables of a sequence without touching pages.
  void clear_sequence(int sequence) noexcept {
    memory.set(base.grids[sequence], GridRecord{});
    // Attention multiplies unwritten places by zero, so they must hold numbers; and a sequence must
    // not find, or save, the tokens of another.
    for (int s = 0; s < shape.slots; ++s) {
      const Ref r = ref(s);
      for (int row = 0; row < shape.rows; ++row) memory.set(r.entry_count(sequence, row), 0);
      if (shape.tail_stride_bytes > 0) {
        memory.clear_bytes(r.unit_tail(sequence, 0),
                           static_cast<std::size_t>(shape.unit.units) * shape.tail_stride_bytes);
      }
    }
  }

  /// A fresh page, zeroed so that stored bytes are a function of the tokens alone.
  [[nodiscard]] std::int32_t take_page() noexcept requires(L::paged) {
    const std::int32_t page = pool.take();
    clear_page(page);
    return page;
  }
  void clear_page(std::int32_t page) noexcept requires(L::paged) {
    memory.clear_bytes(base.pages + static_cast<std::size_t>(page) * shape.page_bytes,
                       shape.page_bytes);
  }

  /// A fresh page with the bytes of another.
  [[nodiscard]] std::int32_t copy_page(std::int32_t from) noexcept requires(L::paged) {
    const std::int32_t page = pool.take();
    memory.copy_bytes(base.pages + static_cast<std::size_t>(page) * shape.page_bytes,
                      base.pages + static_cast<std::size_t>(from) * shape.page_bytes,
                      shape.page_bytes);
    return page;
  }

  /// Makes an entry for the 64 tokens from `first` at the end of a row. Of what is said of its
  /// units a memory is not told: appends on the device write it there.
  void push_entry(const Ref& r, int sequence, int row, std::int64_t first) noexcept {
    const int entry = r.entry_count(sequence, row);
    memory.set(r.entry_count(sequence, row), entry + 1);
    for (int u = row * shape.units_per_row; u < (row + 1) * shape.units_per_row; ++u) {
      r.live_mask(sequence, u, entry) = 0;
      r.first_position(sequence, u, entry) = static_cast<std::int32_t>(first);
      if constexpr (Ref::scatters) {
        std::uint16_t* delta = r.position_deltas + r.unit_entry(sequence, u, entry) * block_tokens;
        for (int t = 0; t < block_tokens; ++t) delta[t] = static_cast<std::uint16_t>(t);
      }
      if constexpr (has_state) {
        TokenState* state = r.token_states + r.unit_entry(sequence, u, entry) * block_tokens;
        for (int t = 0; t < block_tokens; ++t) state[t] = TokenState{};
      }
    }
    if constexpr (L::paged) {
      memory.set(r.page_slot(sequence, row, entry), no_page);
    } else {
      memory.clear_bytes(r.block(sequence, row * shape.units_per_row, entry), shape.page_bytes);
    }
  }

  /// Drops the page of an entry, if it has one. Returns the pages that became free.
  int free_entry_page(const Ref& r, int sequence, int row, int entry) noexcept {
    if constexpr (L::paged) {
      std::int32_t& page = r.page_slot(sequence, row, entry);
      if (page == no_page) return 0;
      const bool freed = pool.drop(page);
      memory.set(page, no_page);
      return freed ? 1 : 0;
    } else {
      return 0;
    }
  }

  /// Drops the page of a row's newest entry, which itself is about to go: nothing reads what is
  /// behind the count, so a memory is not told.
  void drop_newest_entry(const Ref& r, int sequence, int row, int entry) noexcept {
    if constexpr (L::paged) {
      std::int32_t& page = r.page_slot(sequence, row, entry);
      if (page != no_page) pool.drop(page);
      page = no_page;
    }
  }

  /// Copies everything about an entry of a row to another place of the same row, page id included.
  void move_entry(const Ref& r, int sequence, int row, int from, int to) noexcept {
    memory.order();  // `to` may be where the entry moved before lay
    for (int u = row * shape.units_per_row; u < (row + 1) * shape.units_per_row; ++u) {
      const std::size_t a = r.unit_entry(sequence, u, from);
      const std::size_t b = r.unit_entry(sequence, u, to);
      memory.set(r.live[b], r.live[a]);
      memory.set(r.first_positions[b], r.first_positions[a]);
      if constexpr (Ref::scatters) {
        memory.copy_table(r.position_deltas + b * block_tokens,
                          r.position_deltas + a * block_tokens, block_tokens);
      }
      if constexpr (has_state) {
        memory.copy_table(r.token_states + b * block_tokens, r.token_states + a * block_tokens,
                          block_tokens);
      }
    }
    if constexpr (L::paged) {
      memory.set(r.page_slot(sequence, row, to), r.page_slot(sequence, row, from));
    } else {
      memory.copy_bytes(r.block(sequence, row * shape.units_per_row, to),
                        r.block(sequence, row * shape.units_per_row, from), shape.page_bytes);
    }
  }
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
