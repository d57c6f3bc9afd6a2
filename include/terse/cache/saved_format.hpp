/// The bytes of a saved sequence.
///
/// Layout, little endian: SaveHeader, then for each policy class a ClassHeader and its payload:
/// the grid; for every slot and row the entry count, the page flags and the pages; for every unit
/// its masks, first positions, position deltas and evictor state; then the tails.
/// docs/stored_format.md.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "terse/cache/class_store.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

static_assert(std::endian::native == std::endian::little,
              "terse: saved sequences are little endian; big-endian hosts are not served.");

inline constexpr std::uint64_t save_magic = 0x31304b5645535254ull;  // "TRSEVK01"
inline constexpr std::uint32_t save_version = 1;

struct SaveHeader {
  std::uint64_t magic = save_magic;
  std::uint32_t version = save_version;
  std::uint32_t num_classes = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t model_fingerprint = 0;
  std::int64_t length_tokens = 0;
  std::uint64_t checksum = 0;  ///< of this header with this field 0
};

struct ClassHeader {
  std::uint64_t identity = 0;  ///< of layout, policy, shape and stored format
  std::uint64_t payload_bytes = 0;
  std::uint64_t checksum = 0;  ///< of the payload
};
static_assert(sizeof(SaveHeader) == 48 && sizeof(ClassHeader) == 24);

/// Visits a sequence's state in saved order:
///
///   void table(T* table, std::size_t count);              // that bookkeeping reads and writes
///   void states(TokenState* states, std::size_t count);   // of the evictor
///   void entry(const Ref& r, int row, int entry);         // its block
///   void bytes(std::byte* tails, std::size_t count);      // of all units of a slot
///
/// The number of a row's entries is read after its visit.
template <class Store, class Visitor>
void walk_sequence(Store& store, int sequence, Visitor& visitor) {
  using Ref = typename Store::Ref;
  const ClassShape& shape = store.shape;
  visitor.table(&store.base.grids[sequence], 1);
  for (int s = 0; s < shape.slots; ++s) {
    const Ref r = store.ref(s);
    for (int row = 0; row < shape.rows; ++row) {
      visitor.table(&r.entry_count(sequence, row), 1);
      const int count = r.entry_count(sequence, row);
      for (int e = 0; e < count; ++e) visitor.entry(r, row, e);
      for (int u = row * shape.units_per_row; u < (row + 1) * shape.units_per_row; ++u) {
        const std::size_t at = r.unit_entry(sequence, u, 0);
        const auto n = static_cast<std::size_t>(count);
        visitor.table(r.live + at, n);
        visitor.table(r.first_positions + at, n);
        if constexpr (Ref::scatters) {
          visitor.table(r.position_deltas + at * block_tokens, n * block_tokens);
        }
        if constexpr (Store::has_state) {
          visitor.states(r.token_states + at * block_tokens, n * block_tokens);
        }
      }
    }
    if (shape.tail_stride_bytes > 0) {
      visitor.bytes(r.unit_tail(sequence, 0),
                    static_cast<std::size_t>(shape.unit.units) * shape.tail_stride_bytes);
    }
  }
}

/// Where the block of an entry lies, or null if it has none.
template <class Ref>
[[nodiscard]] std::byte* entry_block(const Ref& r, int sequence, int row, int entry) noexcept {
  if (r.page(sequence, row, entry) == no_page) return nullptr;
  return r.block(sequence, row * r.shape.units_per_row, entry);
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
