/// `KVCacheRef<Layout, Policy>`: the trivially copyable view of one slot that operations take.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/rope.hpp"
#include "terse/policy/calibration.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// State of one sequence, common to all slots. Lies in the caller's state buffer.
struct SequenceRecord {
  std::int64_t length_tokens = 0;   ///< committed
  std::int32_t pending_tokens = 0;  ///< of the step in progress
  std::int32_t alive = 0;
  std::uint32_t generation = 0;
  /// Set on the device only: a StatusCode, when it found what the host cannot see
  /// (cuda/kv_cache.cuh).
  std::int32_t failed = 0;
};

/// Where the block grid of a sequence stands. Lies in the caller's state buffer.
struct GridRecord {
  std::int64_t origin = 0;       ///< position at which the 64-token grid begins
  std::int64_t sealed_end = 0;   ///< positions before it lie in sealed blocks
  std::int64_t exact_begin = 0;  ///< positions from it on have exact copies in the tail
  /// Positions before it are read decoded whatever the tail's rule says: truncate has cut behind
  /// them.
  std::int64_t decoded_before = 0;
};

inline constexpr std::int32_t no_page = -1;

/// One slot of a cache. "Row" = list of entries: one per slot and sequence, or one per unit with
/// per-head paging. An entry stands for up to 64 tokens of a row; its mask, positions and evictor
/// state exist per unit. Pointers are those of the caller's buffers.
template <Layout L, class Policy>
struct KVCacheRef {
  using layout = L;
  using policy = Policy;
  using TokenState = TokenStateOf<typename Policy::evictor>;
  static constexpr bool scatters = Policy::evictor::scatters;

  ClassShape shape{};
  RopeSpec rope{};
  ProjectionFactors factors{};
  SlotCalibration calibration{};
  typename Policy::evictor::Params eviction{};
  int slot = 0;

  std::byte* pages = nullptr;                // [page]
  std::byte* tails = nullptr;                // [sequence, unit] of this slot
  SequenceRecord* sequences = nullptr;       // [sequence]
  GridRecord* grids = nullptr;               // [sequence]
  std::uint8_t* appended = nullptr;          // [sequence, slot]: holds the step in progress
  std::int32_t* entry_counts = nullptr;      // [sequence, row]
  std::int32_t* page_table = nullptr;        // [sequence, row, entry], paged layouts
  std::uint64_t* live = nullptr;             // [sequence, unit, entry]
  std::int32_t* first_positions = nullptr;   // [sequence, unit, entry]
  std::uint16_t* position_deltas = nullptr;  // [sequence, unit, entry, 64], scattering evictors
  TokenState* token_states = nullptr;        // [sequence, unit, entry, 64]

  /// What the codec of a stream of a unit knows of it.
  [[nodiscard]] TERSE_HOST_DEVICE CodecContext context(Side side, int unit,
                                                       int stream) const noexcept {
    const bool is_key = side == Side::key;
    CodecContext own{side, is_key ? shape.key_width : shape.value_width};
    if constexpr (uses_calibration<Policy>) {
      const float* of_slot = is_key ? calibration.keys : calibration.values;
      if (of_slot != nullptr) {
        const int streams = is_key ? shape.unit.key_streams : shape.unit.value_streams;
        own.calibration = of_slot + (std::ptrdiff_t{unit} * streams + stream) *
                                        CalibrationLayout{own.width}.floats();
      }
    }
    return own;
  }

  /// Another slot of the same class, where this is slot 0; without its factors and calibration.
  [[nodiscard]] TERSE_HOST_DEVICE KVCacheRef of_slot(int other) const noexcept {
    KVCacheRef r = *this;
    const auto s = static_cast<std::size_t>(other);
    const std::size_t rows =
        static_cast<std::size_t>(shape.sequences) * static_cast<std::size_t>(shape.rows);
    const std::size_t units =
        static_cast<std::size_t>(shape.sequences) * static_cast<std::size_t>(shape.unit.units);
    const std::size_t unit_entries = units * static_cast<std::size_t>(shape.entries);
    r.slot = other;
    r.tails += s * units * shape.tail_stride_bytes;
    r.appended += s;
    r.entry_counts += s * rows;
    if constexpr (L::paged) r.page_table += s * rows * static_cast<std::size_t>(shape.entries);
    r.live += s * unit_entries;
    r.first_positions += s * unit_entries;
    if constexpr (scatters) r.position_deltas += s * unit_entries * block_tokens;
    if constexpr (token_state_bytes < typename Policy::evictor >> 0) {
      r.token_states += s * unit_entries * block_tokens;
    }
    return r;
  }

  [[nodiscard]] TERSE_HOST_DEVICE std::size_t row_index(int sequence, int row) const noexcept {
    return static_cast<std::size_t>(sequence) * static_cast<std::size_t>(shape.rows) +
           static_cast<std::size_t>(row);
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::size_t unit_entry(int sequence, int unit,
                                                         int entry) const noexcept {
    return (static_cast<std::size_t>(sequence) * static_cast<std::size_t>(shape.unit.units) +
            static_cast<std::size_t>(unit)) *
               static_cast<std::size_t>(shape.entries) +
           static_cast<std::size_t>(entry);
  }
  // A row holds one unit or all of them, so nothing is divided here: this runs once per block.
  [[nodiscard]] TERSE_HOST_DEVICE int row_of_unit(int unit) const noexcept {
    return shape.rows == 1 ? 0 : unit;
  }
  [[nodiscard]] TERSE_HOST_DEVICE int unit_in_row(int unit) const noexcept {
    return shape.rows == 1 ? unit : 0;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::int32_t& entry_count(int sequence, int row) const noexcept {
    return entry_counts[row_index(sequence, row)];
  }

  /// Whether this slot holds the step in progress of a sequence.
  [[nodiscard]] TERSE_HOST_DEVICE std::uint8_t& was_appended(int sequence) const noexcept {
    return appended[static_cast<std::size_t>(sequence) * static_cast<std::size_t>(shape.slots)];
  }

  /// Page of an entry, or no_page while its tokens lie in the tail only.
  [[nodiscard]] TERSE_HOST_DEVICE std::int32_t page(int sequence, int row,
                                                    int entry) const noexcept {
    const std::size_t at = row_index(sequence, row) * static_cast<std::size_t>(shape.entries) +
                           static_cast<std::size_t>(entry);
    if constexpr (L::paged) {
      return page_table[at];
    } else {
      const std::size_t per_slot = static_cast<std::size_t>(shape.sequences) *
                                   static_cast<std::size_t>(shape.rows) *
                                   static_cast<std::size_t>(shape.entries);
      return static_cast<std::int32_t>(static_cast<std::size_t>(slot) * per_slot + at);
    }
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::int32_t& page_slot(int sequence, int row,
                                                          int entry) const noexcept
      requires(L::paged) {
    return page_table[row_index(sequence, row) * static_cast<std::size_t>(shape.entries) +
                      static_cast<std::size_t>(entry)];
  }

  /// Encoded block of (unit, entry): key streams, then value streams.
  [[nodiscard]] TERSE_HOST_DEVICE std::byte* block(int sequence, int unit,
                                                   int entry) const noexcept {
    return block_of_page(page(sequence, row_of_unit(unit), entry), unit);
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::byte* block_of_page(std::int32_t page,
                                                           int unit) const noexcept {
    return pages + static_cast<std::size_t>(page) * shape.page_bytes +
           static_cast<std::size_t>(unit_in_row(unit)) * shape.unit_bytes;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::byte* tail_block(int sequence, int unit,
                                                        std::int64_t position) const noexcept {
    const std::int64_t ordinal = (position - grids[sequence].origin) / block_tokens;
    return unit_tail(sequence, unit) +
           static_cast<std::size_t>(ordinal % shape.ring_blocks) * shape.tail_block_bytes;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::byte* sink_block(int sequence, int unit) const noexcept {
    return unit_tail(sequence, unit) +
           static_cast<std::size_t>(shape.ring_blocks) * shape.tail_block_bytes;
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::byte* unit_tail(int sequence, int unit) const noexcept {
    return tails +
           (static_cast<std::size_t>(sequence) * static_cast<std::size_t>(shape.unit.units) +
            static_cast<std::size_t>(unit)) *
               shape.tail_stride_bytes;
  }

  [[nodiscard]] TERSE_HOST_DEVICE std::uint64_t& live_mask(int sequence, int unit,
                                                           int entry) const noexcept {
    return live[unit_entry(sequence, unit, entry)];
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::int32_t& first_position(int sequence, int unit,
                                                               int entry) const noexcept {
    return first_positions[unit_entry(sequence, unit, entry)];
  }
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t position(int sequence, int unit, int entry,
                                                        int token) const noexcept {
    const std::size_t at = unit_entry(sequence, unit, entry);
    if constexpr (scatters) {
      return first_positions[at] +
             position_deltas[at * block_tokens + static_cast<std::size_t>(token)];
    } else {
      return first_positions[at] + token;
    }
  }

  /// Whether every place of (unit, entry) is that of its position counted from the first.
  [[nodiscard]] TERSE_HOST_DEVICE bool is_in_order(int sequence, int unit,
                                                   int entry) const noexcept {
    if constexpr (scatters) {
      const std::uint16_t* delta =
          position_deltas + unit_entry(sequence, unit, entry) * block_tokens;
      for (int t = 0; t < block_tokens; ++t) {
        if (delta[t] != t) return false;
      }
    }
    return true;
  }

  /// Tokens that the newest query sees: committed and of the step in progress.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t visible_tokens(int sequence) const noexcept {
    return sequences[sequence].length_tokens + sequences[sequence].pending_tokens;
  }

  /// The query at `position` reads tokens before this one decoded, later ones exactly.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t sealed_before(int sequence,
                                                             std::int64_t position) const noexcept {
    if (shape.open) return position + 1;
    const GridRecord& grid = grids[sequence];
    const std::int64_t by_rule = grid.origin + shape.tail.sealed_before(position - grid.origin);
    return by_rule > grid.exact_begin ? by_rule : grid.exact_begin;
  }

  /// Bits of the tokens of (unit, entry) whose position is below `end`.
  [[nodiscard]] TERSE_HOST_DEVICE std::uint64_t before(int sequence, int unit, int entry,
                                                       std::int64_t end) const noexcept {
    const std::int64_t first = first_position(sequence, unit, entry);
    if (end <= first) return 0;
    if constexpr (scatters) {
      const std::uint16_t* delta =
          position_deltas + unit_entry(sequence, unit, entry) * block_tokens;
      if (first + delta[block_tokens - 1] < end) return ~0ull;  // deltas never fall
      std::uint64_t bits = 0;
      for (unsigned t = 0; t < block_tokens; ++t) {
        if (first + delta[t] < end) bits |= 1ull << t;
      }
      return bits;
    } else {
      return end - first >= block_tokens ? ~0ull : (1ull << (end - first)) - 1;
    }
  }

  /// Live tokens of a unit whose position is below `end`.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t count_live(int sequence, int unit,
                                                          std::int64_t end) const noexcept {
    std::int64_t n = 0;
    for (int e = 0; e < entry_count(sequence, row_of_unit(unit)); ++e) {
      n += count_ones(live_mask(sequence, unit, e) & before(sequence, unit, e, end));
    }
    return n;
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
