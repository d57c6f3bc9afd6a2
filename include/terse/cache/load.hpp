/// Loading of one sequence: saved bytes are checked before anything is believed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "terse/cache/cache_state.hpp"
#include "terse/cache/fingerprint.hpp"
#include "terse/cache/grid.hpp"
#include "terse/cache/saved_format.hpp"
#include "terse/cache/sequences.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

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
         grid.decoded_before >= 0 && grid.decoded_before <= length &&
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
  std::int64_t previous = 0, newest_live = 0;
  for (std::size_t e = 0; e < count; ++e) {
    const std::int64_t first = load_at<std::int32_t>(firsts, e);
    const std::int64_t on_grid =
        grid.sealed_end + static_cast<std::int64_t>(e - sealed) * block_tokens;
    if (e < sealed ? first < previous || first >= grid.sealed_end : first != on_grid) return false;
    if (first < newest_live) return false;
    previous = first;
    std::int64_t last_delta = 0;
    for (std::size_t t = 0; t < block_tokens; ++t) {
      const std::int64_t delta = Scatters ? load_at<std::uint16_t>(deltas, e * block_tokens + t)
                                          : static_cast<std::int64_t>(t);
      if (delta < last_delta) return false;
      last_delta = delta;
      const bool is_live = (load_at<std::uint64_t>(live, e) >> t & 1u) != 0;
      if (is_live && first + delta >= length) return false;
      if (is_live) newest_live = std::max(newest_live, first + delta);
    }
  }
  return true;
}

/// What a payload's entries need; `ok` unless it contradicts itself.
struct PayloadNeed {
  bool ok = false;
  std::int64_t pages = 0;
  std::int32_t entries = 0;  ///< of the longest list
};

template <class Store>
[[nodiscard]] PayloadNeed payload_need(const Store& store, const std::byte* data,
                                       std::uint64_t bytes, std::int64_t length) noexcept {
  using Ref = typename Store::Ref;
  const ClassShape& shape = store.shape;
  PayloadReader in(data, bytes);
  PayloadNeed need;
  GridRecord grid;
  if (!in.read(&grid) || !is_possible_grid(grid, length)) return {};
  const std::int64_t open_entries =
      grid_blocks(grid.origin, length) - (grid.sealed_end - grid.origin) / block_tokens;
  for (int s = 0; s < shape.slots; ++s) {
    for (int row = 0; row < shape.rows; ++row) {
      std::int32_t count = 0;
      if (!in.read(&count) || count < open_entries) return {};
      if (count > need.entries) need.entries = count;
      for (std::int32_t e = 0; e < count; ++e) {
        std::uint8_t has_block = 0;
        if (!in.read(&has_block) || has_block > 1) return {};
        const bool must_have = !Ref::layout::paged || shape.open || e < count - open_entries;
        if (must_have != (has_block == 1)) return {};
        if (has_block == 1 && in.skip(shape.page_bytes) == nullptr) return {};
        need.pages += has_block;
      }
      const auto n = static_cast<std::size_t>(count);
      for (int u = 0; u < shape.units_per_row; ++u) {
        if (!are_possible_entries<Ref::scatters>(in, grid, length, n,
                                                 n - static_cast<std::size_t>(open_entries))) {
          return {};
        }
        constexpr std::size_t state_bytes = token_state_bytes<typename Ref::policy::evictor>;
        if (in.skip(n * block_tokens * state_bytes) == nullptr) return {};
      }
    }
    const auto units = static_cast<std::size_t>(shape.unit.units);
    if (in.skip(units * shape.tail_stride_bytes) == nullptr) return {};
  }
  need.ok = in.at_end();
  return need;
}

/// Fills an empty sequence from a payload at `in` that payload_need accepted; pages are available.
/// `Target` writes where this processor need not be able to:
///
///   void write_table(T* table, const std::byte* from, std::size_t count);
///   void write_bytes(std::byte* to, const std::byte* from, std::size_t bytes);  // of pages, tails
template <class Store, class Target>
struct SequenceFiller {
  using Ref = typename Store::Ref;

  Store& store;
  int sequence;
  Target& target;
  const std::byte* in;

  template <class T>
  void table(T* to, std::size_t count) noexcept {
    target.write_table(to, in, count);
    in += count * sizeof(T);
  }
  template <class T>
  void states(T* to, std::size_t count) noexcept {
    table(to, count);
  }
  void entry(const Ref& r, int row, int entry) noexcept {
    const bool has_block = *in++ != std::byte{0};
    if constexpr (Ref::layout::paged) {
      store.memory.set(r.page_slot(sequence, row, entry), has_block ? store.pool.take() : no_page);
    }
    if (has_block) bytes(entry_block(r, sequence, row, entry), store.shape.page_bytes);
  }
  void bytes(std::byte* to, std::size_t count) noexcept {
    target.write_bytes(to, in, count);
    in += count;
  }
};

/// Everything lies here.
struct HostTarget {
  template <class T>
  static void write_table(T* to, const std::byte* from, std::size_t count) noexcept {
    std::memcpy(static_cast<void*>(to), from, count * sizeof(T));
  }
  static void write_bytes(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
    std::memcpy(to, from, bytes);
  }
};

/// Checks the class section at `*at` and moves behind it.
template <class Store>
[[nodiscard]] Status check_payload(Store& store, Span<const std::byte> in, std::int64_t length,
                                   std::size_t* at) noexcept {
  ClassHeader own;
  if (in.size() - *at < sizeof own) {
    return error(StatusCode::corrupt_data, "terse::KVCache::load: a section is cut off");
  }
  std::memcpy(&own, in.data() + *at, sizeof own);
  *at += sizeof own;
  if (own.identity != class_identity(store)) {
    return error(StatusCode::mismatch,
                 "terse::KVCache::load: saved under another layout, policy or shape");
  }
  if (own.payload_bytes > in.size() - *at) {
    return error(StatusCode::corrupt_data, "terse::KVCache::load: a section is cut off");
  }
  const std::byte* payload = in.data() + *at;
  if (fingerprint(payload, static_cast<std::size_t>(own.payload_bytes)) != own.checksum) {
    return error(StatusCode::corrupt_data, "terse::KVCache::load: a checksum does not match");
  }
  const PayloadNeed need = payload_need(store, payload, own.payload_bytes, length);
  if (!need.ok) {
    return error(StatusCode::corrupt_data,
                 "terse::KVCache::load: the lengths in a section contradict each other");
  }
  if (need.entries > store.shape.entries) {
    return error(StatusCode::too_many_tokens,
                 "terse::KVCache::load: the sequence has more blocks than a list of this cache; "
                 "detail: blocks",
                 need.entries);
  }
  if constexpr (Store::Ref::layout::paged) {
    if (need.pages > store.pool.free_pages()) {
      return error(StatusCode::no_free_pages,
                   "terse::KVCache::load: the pool lacks pages; detail: pages missing",
                   need.pages - store.pool.free_pages());
    }
  }
  *at += static_cast<std::size_t>(own.payload_bytes);
  return {};
}

/// Checks everything that is saved at `in`, and whether there is room for it. Gives the length in
/// tokens.
template <class State>
[[nodiscard]] Expected<std::int64_t> check_saved(State& state, Span<const std::byte> in,
                                                 std::uint64_t model_fingerprint) noexcept {
  if (state.in_step) return inside_step();
  SaveHeader header;
  if (in.data() == nullptr || in.size() < sizeof header) {
    return error(StatusCode::corrupt_data, "terse::KVCache::load: no room for a header");
  }
  std::memcpy(&header, in.data(), sizeof header);
  SaveHeader unsigned_header = header;
  unsigned_header.checksum = 0;
  if (header.magic != save_magic) {
    return error(StatusCode::corrupt_data, "terse::KVCache::load: not a saved sequence");
  }
  if (header.version != save_version) {
    return error(StatusCode::mismatch, "terse::KVCache::load: another format version",
                 header.version);
  }
  if (fingerprint(&unsigned_header, sizeof unsigned_header) != header.checksum ||
      header.total_bytes != in.size() || header.length_tokens < 0 ||
      header.length_tokens > 0x7fffffff) {
    return error(StatusCode::corrupt_data,
                 "terse::KVCache::load: the header is damaged or the "
                 "bytes are cut off");
  }
  if (header.model_fingerprint != model_fingerprint) {
    return error(StatusCode::mismatch, "terse::KVCache::load: saved for another model");
  }
  if (header.num_classes != static_cast<std::uint32_t>(State::num_classes)) {
    return error(StatusCode::mismatch, "terse::KVCache::load: another number of policy classes",
                 header.num_classes);
  }
  Status status{};
  std::size_t at = sizeof header;
  state.for_each_store([&](auto& store) {
    if (status.ok()) status = check_payload(store, in, header.length_tokens, &at);
  });
  if (status.ok() && at != in.size()) {
    status = error(StatusCode::corrupt_data, "terse::KVCache::load: bytes are left over");
  }
  if (!status.ok()) return status;
  return std::int64_t{header.length_tokens};
}

/// Fills an empty sequence with what check_saved accepted; `target`: as in SequenceFiller.
template <class State, class Target>
void fill_sequence(State& state, SequenceId sequence, const std::byte* in,
                   std::int64_t length_tokens, Target& target) noexcept {
  in += sizeof(SaveHeader);
  state.for_each_store([&](auto& store) {
    using Store = std::remove_reference_t<decltype(store)>;
    SequenceFiller<Store, Target> filler{store, sequence.index, target, in + sizeof(ClassHeader)};
    walk_sequence(store, sequence.index, filler);
    in = filler.in;
  });
  state.memory.set(state.sequences[sequence.index].length_tokens, length_tokens);
}

template <class State>
[[nodiscard]] Expected<SequenceId> load_sequence(State& state, Span<const std::byte> in,
                                                 std::uint64_t model_fingerprint) noexcept {
  static_assert(std::is_same_v<typename State::Memory, HostMemory>);
  const Expected<std::int64_t> length = check_saved(state, in, model_fingerprint);
  if (!length.ok()) return length.status();
  Expected<SequenceId> sequence = create_sequence(state);
  if (!sequence.ok()) return sequence;
  HostTarget target;
  fill_sequence(state, *sequence, in.data(), *length, target);
  return sequence;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
