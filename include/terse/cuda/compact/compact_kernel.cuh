/// Rewriting of rows into fewer entries, a thread block a unit.
///
/// Entries are made front to back, each from the entry in its place or later ones, so a thread
/// block alone keeps the order that this asks for. Pages that a row has emptied are written again
/// by the same row at once: of each page a unit reads and writes its own part only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/packed_block.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/encode.cuh"
#include "terse/cuda/compact/compact_call.cuh"
#include "terse/cuda/compact/gathered_tokens.cuh"
#include "terse/cuda/compact/write_stream.cuh"
#include "terse/policy/compose.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int compact_threads = 256;
inline constexpr std::size_t gathered_bytes = round_up(sizeof(GatheredTokens), record_align_bytes);

/// Shared memory of a thread block: its gathered tokens, and behind them the stream in the making.
template <class Ref>
[[nodiscard]] std::size_t compact_shared_bytes(const ClassShape& shape) noexcept {
  if constexpr (terse::detail::moves_exactly<typename Ref::policy>) {
    const std::size_t keys = shape.key_record.bytes, values = shape.value_record.bytes;
    return gathered_bytes + (keys > values ? keys : values);
  } else {
    return gathered_bytes + encode_shared_bytes<Ref>(shape, block_tokens, false);
  }
}

/// What one thread block rewrites.
template <class Ref>
struct UnitRewrite {
  using Policy = typename Ref::policy;
  using TokenState = typename Ref::TokenState;
  static constexpr bool has_state = token_state_bytes<typename Policy::evictor> > 0;

  const Ref& r;
  int sequence, unit, sealed;
  GatheredTokens& tokens;
  std::byte* shared;
  int cursor;         // entries before it have no token left
  std::int64_t from;  // nor positions before it, where the evictor scatters

  [[nodiscard]] __device__ std::size_t place_of(int entry) const {
    return r.unit_entry(sequence, unit, entry);
  }

  /// Makes `entry` the later entry `source`.
  __device__ void move(int source, int entry) const {
    const std::size_t a = place_of(source), b = place_of(entry);
    const auto t = static_cast<int>(threadIdx.x);
    if (t == 0) {
      r.live[b] = r.live[a];
      r.first_positions[b] = r.first_positions[a];
    }
    if (t < block_tokens) {
      const auto own = static_cast<std::size_t>(t);
      if constexpr (Ref::scatters) {
        r.position_deltas[b * block_tokens + own] = r.position_deltas[a * block_tokens + own];
      }
      if constexpr (has_state) {
        r.token_states[b * block_tokens + own] = r.token_states[a * block_tokens + own];
      }
    }
    if constexpr (!Ref::layout::paged) {
      copy_together(r.block(sequence, unit, entry), r.block(sequence, unit, source),
                    r.shape.unit_bytes);
    }
  }

  template <class C>
  __device__ void write_stream(Side side, int stream, std::size_t offset, std::byte* to) const {
    const CodecContext context = r.context(side, unit, stream);
    if constexpr (terse::detail::moves_exactly<Policy>) {
      copy_stream<C>(context, offset, tokens, shared, to + offset);
    } else {
      reencode_stream<C>(context, offset, tokens, reinterpret_cast<float*>(shared), to + offset);
    }
  }

  /// Makes `entry` the block of the next tokens, in `page`; `first`: the position of its place 0,
  /// where the evictor does not scatter.
  __device__ void write(std::int32_t page, std::int64_t first, int entry) {
    if constexpr (Ref::scatters) {
      gather_tokens(r, sequence, unit, cursor, sealed, from, 0, tokens);
      first = tokens.count > 0 ? tokens.position[0] : from > 0 ? from - 1 : 0;
    } else {
      gather_tokens(r, sequence, unit, cursor, sealed, first, first + block_tokens, tokens);
    }
    std::byte* to;
    if constexpr (Ref::layout::paged) {
      to = r.pages + static_cast<std::size_t>(page) * r.shape.page_bytes +
           static_cast<std::size_t>(r.unit_in_row(unit)) * r.shape.unit_bytes;
    } else {
      to = r.block(sequence, unit, entry);
    }
    if (tokens.count > 0) {
      for (int s = 0; s < r.shape.unit.key_streams; ++s) {
        write_stream<typename Policy::key_codec>(Side::key, s, r.shape.key_offset(s), to);
      }
      for (int s = 0; s < r.shape.unit.value_streams; ++s) {
        write_stream<typename Policy::value_codec>(Side::value, s, r.shape.value_offset(s), to);
      }
    } else if (Ref::layout::paged) {
      clear_together(to, r.shape.unit_bytes);
    }
    describe(first, entry);
    if (tokens.count > 0) {
      cursor = tokens.entry[tokens.count - 1];
      from = tokens.position[tokens.count - 1] + 1;
    }
    if (cursor <= entry) cursor = entry + 1;
  }

  /// Mask, positions and evictor states of the block of the gathered tokens. States may come from
  /// places that others go to.
  __device__ void describe(std::int64_t first, int entry) const {
    const auto t = static_cast<int>(threadIdx.x);
    const std::size_t at = place_of(entry);
    if constexpr (has_state) {
      TokenState state{};
      const bool has_token = t < tokens.count;
      if (has_token) {
        state = r.token_states[place_of(tokens.entry[t]) * block_tokens +
                               static_cast<std::size_t>(tokens.token[t])];
      }
      __syncthreads();
      if (has_token) {
        const auto place = Ref::scatters ? t : static_cast<int>(tokens.position[t] - first);
        r.token_states[at * block_tokens + static_cast<std::size_t>(place)] = state;
      }
    }
    if constexpr (Ref::scatters) {
      if (t < block_tokens) {
        const int rank = t < tokens.count ? t : tokens.count - 1;
        r.position_deltas[at * block_tokens + static_cast<std::size_t>(t)] =
            static_cast<std::uint16_t>(rank < 0 ? 0 : tokens.position[rank] - first);
      }
    }
    if (t == 0) {
      r.first_positions[at] = static_cast<std::int32_t>(first);
      r.live[at] = tokens.live;
    }
  }
};

/// Grid: {row of the call, unit of the row}.
template <class Ref>
__global__ void __launch_bounds__(compact_threads, 2)
    compact_kernel(const __grid_constant__ CompactCall<Ref> call) {
  extern __shared__ __align__(record_align_bytes) std::byte compact_shared[];
  const int units = call.r.shape.units_per_row;
  const CompactRow& row = call.rows[static_cast<int>(blockIdx.x) / units];
  const Ref r = call.r.of_slot(row.slot);
  const int unit = row.row * units + static_cast<int>(blockIdx.x) % units;
  UnitRewrite<Ref> rewrite{r,
                           call.sequence,
                           unit,
                           row.sealed,
                           *reinterpret_cast<GatheredTokens*>(compact_shared),
                           compact_shared + gathered_bytes,
                           row.first_entry,
                           0};
  if constexpr (Ref::scatters) {
    // A launch before this one made the entries before the first.
    if (row.first_entry > 0) {
      const int entry = row.first_entry - 1;
      const std::uint64_t live = r.live_mask(call.sequence, unit, entry);
      const int last = live != 0 ? 63 - __clzll(static_cast<long long>(live)) : 0;
      rewrite.from = r.position(call.sequence, unit, entry, last) + 1;
    }
  }
  for (int i = 0; i < row.count; ++i) {
    const EntrySource source = call.sources[row.begin + i];
    if (source.page == no_page) {
      if (source.at != row.first_entry + i) rewrite.move(source.at, row.first_entry + i);
    } else {
      rewrite.write(source.page, source.at, row.first_entry + i);
    }
    __syncthreads();
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
