/// Writing one block from live tokens of other blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/cache/class_store.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// Whether blocks can be written from tokens of others without encoding them again.
template <class Policy>
inline constexpr bool moves_exactly = Policy::key_codec::granularity ==
                                      Granularity::per_token&& Policy::value_codec::granularity ==
                                      Granularity::per_token&& requires(const CodecContext& c,
                                                                        const std::byte* from,
                                                                        std::byte* to) {
  Policy::key_codec::copy_token(c, from, 0, to, 0);
  Policy::value_codec::copy_token(c, from, 0, to, 0);
};

/// Tokens of one unit that become one block, whose place 0 is at `first`. Evictors that scatter get
/// them in consecutive places, the others in places by position.
template <class Store>
struct PackedTokens {
  const typename Store::Item* items;
  int count;
  std::int64_t first;

  [[nodiscard]] int place(int i) const noexcept {
    return Store::Ref::scatters ? i : static_cast<int>(items[i].position - first);
  }
};

/// Writes one stream of a packed block.
template <class CodecPart, class Store>
void pack_stream(Store& store, const typename Store::Ref& r, int sequence, int unit, Side side,
                 int stream, std::size_t offset, const PackedTokens<Store>& tokens,
                 std::byte* out) noexcept {
  const CodecContext context = r.context(side, unit, stream);
  if constexpr (moves_exactly<typename Store::Ref::policy>) {
    for (int i = 0; i < tokens.count; ++i) {
      CodecPart::copy_token(context, r.block(sequence, unit, tokens.items[i].entry) + offset,
                            tokens.items[i].token, out + offset, tokens.place(i));
    }
  } else {
    int i = 0;
    for (int t = 0; t < block_tokens; ++t) {
      // Unused places repeat a neighbour, so that they do not widen a group's range.
      while (i + 1 < tokens.count && tokens.place(i + 1) <= t) ++i;
      const auto& item = tokens.items[i];
      for (int c = 0; c < context.width; ++c) {
        store.vectors[t * context.width + c] =
            CodecPart::decode(context, r.block(sequence, unit, item.entry) + offset, item.token, c);
      }
    }
    encode_block<CodecPart>(context, store.vectors, out + offset);
  }
}

/// Moves the evictor state of a packed entry's tokens. Tokens only move to the front, so each place
/// is read before it is written.
template <class Store>
void move_states(const typename Store::Ref& r, int sequence, int unit, int entry,
                 const PackedTokens<Store>& tokens) noexcept {
  if constexpr (Store::has_state) {
    const std::size_t to = r.unit_entry(sequence, unit, entry) * block_tokens;
    for (int i = 0; i < tokens.count; ++i) {
      const std::size_t from = r.unit_entry(sequence, unit, tokens.items[i].entry) * block_tokens;
      r.token_states[to + static_cast<std::size_t>(tokens.place(i))] =
          r.token_states[from + static_cast<std::size_t>(tokens.items[i].token)];
    }
  }
}

/// Writes positions and mask of a packed entry.
template <class Store>
void describe_packed(const typename Store::Ref& r, int sequence, int unit, int entry,
                     const PackedTokens<Store>& tokens) noexcept {
  const std::size_t at = r.unit_entry(sequence, unit, entry);
  std::uint64_t live = 0;
  if constexpr (Store::Ref::scatters) {
    std::uint16_t* deltas = r.position_deltas + at * block_tokens;
    std::uint16_t delta = 0;
    for (int t = 0; t < block_tokens; ++t) {
      if (t < tokens.count) {
        delta = static_cast<std::uint16_t>(tokens.items[t].position - tokens.first);
      }
      deltas[t] = delta;
    }
    live =
        tokens.count == block_tokens ? ~std::uint64_t{0} : (std::uint64_t{1} << tokens.count) - 1;
  } else {
    for (int i = 0; i < tokens.count; ++i) {
      live |= std::uint64_t{1} << static_cast<unsigned>(tokens.place(i));
    }
  }
  r.first_positions[at] = static_cast<std::int32_t>(tokens.first);
  r.live[at] = live;
}

/// Makes entry `entry` of a unit the block of `tokens`, in `page` or, with contiguous layouts, in
/// its own place. The tokens may lie in that place too: the block is built beside it.
template <class Store>
void write_packed(Store& store, const typename Store::Ref& r, int sequence, int unit, int entry,
                  std::int32_t page, const PackedTokens<Store>& tokens) noexcept {
  using Policy = typename Store::Ref::policy;
  const ClassShape& shape = store.shape;
  if (tokens.count > 0) {
    std::byte* out;
    if constexpr (Store::Ref::layout::paged) {
      out = r.pages + static_cast<std::size_t>(page) * shape.page_bytes +
            static_cast<std::size_t>(unit % shape.units_per_row) * shape.unit_bytes;
    } else {
      out = reinterpret_cast<std::byte*>(store.item_keys);
      std::memset(out, 0, shape.unit_bytes);
    }
    for (int s = 0; s < shape.unit.key_streams; ++s) {
      pack_stream<typename Policy::key_codec>(store, r, sequence, unit, Side::key, s,
                                              shape.key_offset(s), tokens, out);
    }
    for (int s = 0; s < shape.unit.value_streams; ++s) {
      pack_stream<typename Policy::value_codec>(store, r, sequence, unit, Side::value, s,
                                                shape.value_offset(s), tokens, out);
    }
    if constexpr (!Store::Ref::layout::paged) {
      std::memcpy(r.block(sequence, unit, entry), out, shape.unit_bytes);
    }
  }
  move_states<Store>(r, sequence, unit, entry, tokens);
  describe_packed<Store>(r, sequence, unit, entry, tokens);
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
