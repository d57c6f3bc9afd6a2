/// Saving and loading of one sequence: self-describing bytes, checked before anything is believed.
///
/// Layout, little endian: SaveHeader, then for each policy class a ClassHeader and its payload:
/// the grid; for every slot and row the entry count, the page flags and the pages; for every unit
/// its masks, first positions, position deltas and evictor state; then the tails.
/// docs/stored_format.md.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/class_store.hpp"
#include "terse/cache/steps.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

static_assert(std::endian::native == std::endian::little,
              "terse: saved sequences are little endian; big-endian hosts are not served.");

inline constexpr std::uint64_t save_magic = 0x31304b5645535254ull;  // "TRSEVK01"
inline constexpr std::uint32_t save_version = 1;

/// First bytes of a state buffer: attach recognises its own caches by them.
inline constexpr std::uint64_t state_magic = 0x3130544154535254ull;  // "TRSTAT01"
struct StateRecord {
  std::uint64_t magic = 0;
  std::uint64_t identity = 0;
};

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

/// FNV-1a, 64 bits.
[[nodiscard]] inline std::uint64_t fingerprint(
    const void* data, std::size_t bytes, std::uint64_t hash = 0xcbf29ce484222325ull) noexcept {
  const auto* p = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3ull;
  return hash;
}

/// What a codec makes of a fixed block: differs as soon as its stored bytes would be read wrongly.
template <class CodecPart, class Store>
[[nodiscard]] std::uint64_t codec_identity(Store& store, Side side, std::uint64_t hash) noexcept {
  const ClassShape& shape = store.shape;
  const CodecContext context{side, side == Side::key ? shape.key_width : shape.value_width};
  const Record record = side == Side::key ? shape.key_record : shape.value_record;
  std::uint32_t state = 1;
  for (int i = 0; i < block_tokens * context.width; ++i) {
    state = state * 1664525u + 1013904223u;
    store.vectors[i] = static_cast<float>(static_cast<int>(state >> 16) - 32768) / 8192.0f;
  }
  for (int t = 0; t < block_tokens; ++t) {
    to_basis<CodecPart>(context, store.vectors + t * context.width);
  }
  auto* block = reinterpret_cast<std::byte*>(store.item_keys);
  std::memset(block, 0, record.bytes);
  encode_block<CodecPart>(context, store.vectors, block);
  return fingerprint(block, record.bytes, hash);
}

template <class Store>
[[nodiscard]] std::uint64_t class_identity(Store& store) noexcept {
  using Ref = typename Store::Ref;
  using Policy = typename Ref::policy;
  const ClassShape& s = store.shape;
  const std::int64_t facts[] = {
      Ref::layout::paged,
      static_cast<std::int64_t>(Ref::layout::head_paging),
      s.slots,
      s.kv_heads,
      s.head_dim,
      s.unit.units,
      s.unit.key_streams,
      s.unit.value_streams,
      s.key_width,
      s.value_width,
      s.rows,
      s.open,
      s.tail.min_tokens,
      s.tail.granule_tokens,
      s.tail.sink_tokens,
      Ref::scatters,
      static_cast<std::int64_t>(Policy::signal),
      static_cast<std::int64_t>(Policy::reindex),
      static_cast<std::int64_t>(token_state_bytes<typename Policy::evictor>),
      static_cast<std::int64_t>(s.unit_bytes)};
  std::uint64_t hash = fingerprint(facts, sizeof facts);
  hash = codec_identity<typename Policy::key_codec>(store, Side::key, hash);
  return codec_identity<typename Policy::value_codec>(store, Side::value, hash);
}

/// Visits every byte range of a sequence's state in saved order. `visit(pointer, bytes)` for state
/// and tails, `page(ref, row, entry)` for entries, after their counts are known.
template <class Store, class VisitBytes, class VisitPage>
void walk_sequence(Store& store, int sequence, VisitBytes&& visit, VisitPage&& page) {
  using Ref = typename Store::Ref;
  const ClassShape& shape = store.shape;
  visit(&store.base.grids[sequence], sizeof(GridRecord));
  for (int s = 0; s < shape.slots; ++s) {
    const Ref r = store.ref(s);
    for (int row = 0; row < shape.rows; ++row) {
      visit(&r.entry_count(sequence, row), sizeof(std::int32_t));
      const int count = r.entry_count(sequence, row);
      if (count < 0 || count > shape.entries) return;  // only when loading: refused afterwards
      for (int e = 0; e < count; ++e) page(r, row, e);
      for (int u = row * shape.units_per_row; u < (row + 1) * shape.units_per_row; ++u) {
        const std::size_t at = r.unit_entry(sequence, u, 0);
        const auto n = static_cast<std::size_t>(count);
        visit(r.live + at, n * sizeof *r.live);
        visit(r.first_positions + at, n * sizeof *r.first_positions);
        if constexpr (Ref::scatters) {
          visit(r.position_deltas + at * block_tokens,
                n * block_tokens * sizeof *r.position_deltas);
        }
        if constexpr (Store::has_state) {
          visit(r.token_states + at * block_tokens, n * block_tokens * sizeof *r.token_states);
        }
      }
    }
    for (int u = 0; u < shape.unit.units; ++u) {
      if (shape.tail_stride_bytes > 0) visit(r.unit_tail(sequence, u), shape.tail_stride_bytes);
    }
  }
}

/// Whether an entry has a block, and where.
template <class Ref>
[[nodiscard]] std::byte* entry_block(const Ref& r, int sequence, int row, int entry) noexcept {
  if (r.page(sequence, row, entry) == no_page) return nullptr;
  return r.block(sequence, row * r.shape.units_per_row, entry);
}

template <class Store>
[[nodiscard]] std::uint64_t payload_bytes(Store& store, int sequence) {
  std::uint64_t bytes = 0;
  walk_sequence(
      store, sequence, [&](const void*, std::size_t n) { bytes += n; },
      [&](const auto& r, int row, int entry) {
        bytes += 1;
        if (entry_block(r, sequence, row, entry) != nullptr) bytes += store.shape.page_bytes;
      });
  return bytes;
}

/// Writes the payload at `out`, which has room for payload_bytes.
template <class Store>
void write_payload(Store& store, int sequence, std::byte* out) {
  const auto put = [&](const void* from, std::size_t n) {
    std::memcpy(out, from, n);
    out += n;
  };
  walk_sequence(store, sequence, put, [&](const auto& r, int row, int entry) {
    const std::byte* block = entry_block(r, sequence, row, entry);
    const std::uint8_t has_block = block != nullptr;
    put(&has_block, 1);
    if (block != nullptr) put(block, store.shape.page_bytes);
  });
}

/// Reads a payload piece by piece, never beyond its end.
class PayloadReader {
 public:
  PayloadReader(const std::byte* data, std::uint64_t bytes) noexcept : data_(data), left_(bytes) {}
  /// The next `n` bytes, or null.
  [[nodiscard]] const std::byte* skip(std::size_t n) noexcept {
    if (left_ < n) return nullptr;
    const std::byte* at = data_;
    data_ += n;
    left_ -= n;
    return at;
  }
  template <class T>
  [[nodiscard]] bool read(T* out) noexcept {
    const std::byte* at = skip(sizeof(T));
    if (at != nullptr) std::memcpy(out, at, sizeof(T));
    return at != nullptr;
  }
  [[nodiscard]] bool at_end() const noexcept { return left_ == 0; }

 private:
  const std::byte* data_;
  std::uint64_t left_;
};

template <class T>
[[nodiscard]] T load_at(const std::byte* array, std::size_t i) noexcept {
  T value;
  std::memcpy(&value, array + i * sizeof(T), sizeof(T));
  return value;
}

/// Whether the grid of a loaded sequence could have come about.
[[nodiscard]] inline bool is_possible_grid(const GridRecord& grid, std::int64_t length) noexcept {
  return grid.origin >= 0 && grid.origin <= grid.exact_begin &&
         grid.exact_begin <= grid.sealed_end && grid.sealed_end <= length &&
         (grid.exact_begin - grid.origin) % block_tokens == 0 &&
         (grid.sealed_end - grid.origin) % block_tokens == 0;
}

/// Whether the masks and positions of a unit's entries could have come about: sealed entries in
/// order before the grid's open part, that part on the grid, no live token at `length` or later.
template <bool Scatters>
[[nodiscard]] bool are_possible_entries(PayloadReader& in, const GridRecord& grid,
                                        std::int64_t length, std::size_t count,
                                        std::size_t sealed) noexcept {
  const std::byte* live = in.skip(count * sizeof(std::uint64_t));
  const std::byte* firsts = in.skip(count * sizeof(std::int32_t));
  const std::byte* deltas = Scatters ? in.skip(count * block_tokens * sizeof(std::uint16_t)) : live;
  if (live == nullptr || firsts == nullptr || deltas == nullptr) return false;
  std::int64_t previous = 0;
  for (std::size_t e = 0; e < count; ++e) {
    const std::int64_t first = load_at<std::int32_t>(firsts, e);
    const std::int64_t on_grid =
        grid.sealed_end + static_cast<std::int64_t>(e - sealed) * block_tokens;
    if (e < sealed ? first < previous || first >= grid.sealed_end : first != on_grid) return false;
    previous = first;
    std::int64_t last_delta = 0;
    for (std::size_t t = 0; t < block_tokens; ++t) {
      const std::int64_t delta = Scatters ? load_at<std::uint16_t>(deltas, e * block_tokens + t)
                                          : static_cast<std::int64_t>(t);
      if (delta < last_delta) return false;
      last_delta = delta;
      const bool is_live = (load_at<std::uint64_t>(live, e) >> t & 1u) != 0;
      if (is_live && first + delta >= length) return false;
    }
  }
  return true;
}

/// Pages that a payload's entries need; -1 if it contradicts itself.
template <class Store>
[[nodiscard]] std::int64_t count_payload_pages(const Store& store, const std::byte* data,
                                               std::uint64_t bytes, std::int64_t length) noexcept {
  using Ref = typename Store::Ref;
  const ClassShape& shape = store.shape;
  PayloadReader in(data, bytes);
  std::int64_t pages = 0;
  GridRecord grid;
  if (!in.read(&grid) || !is_possible_grid(grid, length)) return -1;
  const std::int64_t open_entries =
      grid_blocks(grid.origin, length) - (grid.sealed_end - grid.origin) / block_tokens;
  for (int s = 0; s < shape.slots; ++s) {
    for (int row = 0; row < shape.rows; ++row) {
      std::int32_t count = 0;
      if (!in.read(&count) || count < open_entries || count > shape.entries) return -1;
      for (std::int32_t e = 0; e < count; ++e) {
        std::uint8_t has_block = 0;
        if (!in.read(&has_block) || has_block > 1) return -1;
        const bool must_have = !Ref::layout::paged || shape.open || e < count - open_entries;
        if (must_have != (has_block == 1)) return -1;
        if (has_block == 1 && in.skip(shape.page_bytes) == nullptr) return -1;
        pages += has_block;
      }
      const auto n = static_cast<std::size_t>(count);
      for (int u = 0; u < shape.units_per_row; ++u) {
        if (!are_possible_entries<Ref::scatters>(in, grid, length, n,
                                                 n - static_cast<std::size_t>(open_entries))) {
          return -1;
        }
        constexpr std::size_t state_bytes = token_state_bytes<typename Ref::policy::evictor>;
        if (in.skip(n * block_tokens * state_bytes) == nullptr) return -1;
      }
    }
    const auto units = static_cast<std::size_t>(shape.unit.units);
    if (in.skip(units * shape.tail_stride_bytes) == nullptr) return -1;
  }
  return in.at_end() ? pages : -1;
}

/// Fills an empty sequence from a payload that count_payload_pages accepted; pages are available.
template <class Store>
void read_payload(Store& store, int sequence, const std::byte* in) {
  const auto get = [&](void* to, std::size_t n) {
    std::memcpy(to, in, n);
    in += n;
  };
  walk_sequence(store, sequence, get, [&](const auto& r, int row, int entry) {
    std::uint8_t has_block = 0;
    get(&has_block, 1);
    if constexpr (Store::Ref::layout::paged) {
      r.page_slot(sequence, row, entry) = has_block != 0 ? store.take_page() : no_page;
    }
    if (has_block != 0) {
      get(r.block(sequence, row * store.shape.units_per_row, entry), store.shape.page_bytes);
    }
  });
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
