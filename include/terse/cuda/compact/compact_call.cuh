/// What the kernel of compaction is given: the host's plan of the new entries of rows.
#pragma once

#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Where an entry of a row comes from.
struct EntrySource {
  std::int32_t page;  ///< of a block to be written; no_page: an entry moves as it is
  std::int32_t at;    ///< the entry that moves, or the position of the block's place 0, where the
                      ///< evictor does not scatter
};

/// The entries of one row from `first_entry` on.
struct CompactRow {
  std::int32_t slot, row;
  std::int32_t first_entry;
  std::int32_t sealed;  ///< blocks take their tokens of the entries before this one
  std::int32_t begin;   ///< its sources: from this one
  std::int32_t count;   ///< so many
};

/// Rows are independent of each other: none writes to a page that another one reads. Pointers are
/// the device's; the page table is the old one until the kernel has ended.
template <class Ref>
struct CompactCall {
  static constexpr int most_rows = 128;

  Ref r;  // of slot 0, with the calibration of all rows' slots where that is needed
  const EntrySource* sources;
  std::int32_t sequence;
  std::int32_t num_rows;
  CompactRow rows[most_rows];
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
