/// Appending of a step's tokens to one slot: basis, tail or code, sealing, in one launch.
///
/// A thread block has one stream of one unit of one part, and blocks of 64 places in turn: those
/// that the step writes to, and those that it seals. A block that is both is written first, so that
/// nothing has to wait for another thread block. Which blocks these are follows from lengths that
/// lie on the device, so a captured launch may be replayed after they have changed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/append.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/cuda/append/divisor.cuh"
#include "terse/cuda/append/encode.cuh"
#include "terse/cuda/append/tile_basis.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/cache/step_record.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int most_append_threads = 512;

/// Everything that the kernel is given. Pointers are the device's.
template <class Ref>
struct AppendCall {
  Ref r;
  AppendInputs in;
  StepView step;
  FailureTables failure;
  int slot;                           // counted over all classes
  int num_parts;                      // that the grid serves
  int most_tokens;                    // of a part
  std::int64_t num_rows;              // of the inputs
  bool aligned_keys, aligned_values;  // can_load_vectors
};

/// The blocks of a sequence's grid that a step seals, writes to, or both. Blocks are counted from
/// the grid's origin. Positions are below 2^31; divisions of 64 bits would cost more than all else
/// here.
struct StepBlocks {
  int origin;
  int length, end;  ///< committed, and with the step
  int seals_from, seals_to;
  int writes_from, last;
  int only_sealed, count;

  __device__ StepBlocks(const ClassShape& shape, const GridRecord& grid, std::int64_t committed,
                        int tokens)
      : origin(static_cast<int>(grid.origin)),
        length(static_cast<int>(committed)),
        end(length + tokens),
        seals_from((static_cast<int>(grid.sealed_end) - origin) >> 6),
        writes_from((length - origin) >> 6),
        last((end - 1 - origin) >> 6) {
    static_assert(block_tokens == 64);
    const int by_rule = shape.open ? 0 : sealed_blocks(shape.tail, end - origin);
    seals_to = by_rule > seals_from ? by_rule : seals_from;
    const int first = seals_to < writes_from ? seals_to : writes_from;
    only_sealed = first > seals_from ? first - seals_from : 0;
    count = only_sealed + last - writes_from + 1;
  }
  /// TailSpec::sealed_before of the last of `tokens` tokens, in blocks.
  [[nodiscard]] static __device__ int sealed_blocks(const TailSpec& tail, int tokens) {
    const int old = tokens - tail.min_tokens;
    return old <= 0 ? 0
                    : Divisor::of(tail.granule_tokens).quotient(old) * (tail.granule_tokens >> 6);
  }
  [[nodiscard]] __device__ int block(int i) const {
    return i < only_sealed ? seals_from + i : writes_from + (i - only_sealed);
  }
  [[nodiscard]] __device__ bool seals(int b) const { return seals_from <= b && b < seals_to; }
};

/// Rows that a tile has room for.
[[nodiscard]] TERSE_HOST_DEVICE inline int tile_rows(const ClassShape& shape, int most_tokens) {
  // A multiple of four, so that what lies behind it is aligned whatever the stride.
  return shape.open && most_tokens < block_tokens ? round_up(most_tokens, 4) : block_tokens;
}

template <class Ref>
struct AppendKernel {
  using Policy = typename Ref::policy;
  static constexpr bool has_state = token_state_bytes<typename Policy::evictor> > 0;

  const AppendCall<Ref>& call;
  float* shared;
  int sequence;
  int tokens;
  int first_row;      ///< of the part, in the inputs
  int length_before;  ///< committed tokens

  __device__ void fail(StatusCode code) const {
    if (threadIdx.x == 0) fail_sequence(call.failure, sequence, code, call.slot, length_before);
  }

  /// Masks, positions and evictor state of a block's new tokens. By the key stream 0 of a unit.
  __device__ void describe(int unit, int entry, int first_position, const TokenTile& tile) const {
    const Ref& r = call.r;
    const std::size_t at = r.unit_entry(sequence, unit, entry);
    const bool is_fresh = first_position >= length_before;
    if (threadIdx.x == 0) {
      const std::uint64_t bits = (tile.count == block_tokens ? ~0ull : (1ull << tile.count) - 1)
                                 << tile.first;
      // Places from the first new one on may still have the bits of a step that was given up.
      const std::uint64_t older = is_fresh ? 0 : r.live[at] & ((1ull << tile.first) - 1);
      r.live[at] = older | bits;
      if (is_fresh) r.first_positions[at] = first_position;
      if (unit == 0) r.was_appended(sequence) = 1;
    }
    if constexpr (Ref::scatters) {
      if (is_fresh && threadIdx.x < block_tokens) {
        r.position_deltas[at * block_tokens + threadIdx.x] =
            static_cast<std::uint16_t>(threadIdx.x);
      }
    }
    if constexpr (has_state) {
      const int place = static_cast<int>(threadIdx.x), t = place - tile.first;
      const bool is_new = t >= 0 && t < tile.count;
      if (is_new || (is_fresh && place < block_tokens)) {
        auto& state = r.token_states[at * block_tokens + static_cast<std::size_t>(place)];
        state = {};
        if constexpr (Policy::signal == Signal::gate_logit) {
          const std::int64_t row = first_row + (first_position - length_before) + place;
          for (int h = 0; is_new && h < r.shape.unit.heads_per_unit; ++h) {
            Policy::evictor::admit(
                state, call.in.gate_logits.get(row, unit * r.shape.unit.heads_per_unit + h, 0));
          }
        }
      }
    }
  }

  /// Whether the gate logits of a block's new tokens are numbers, in all threads.
  __device__ bool gates_are_finite(int unit, int first_token, int count) const {
    if constexpr (Policy::signal == Signal::gate_logit) {
      const int heads = call.r.shape.unit.heads_per_unit;
      bool bad = false;
      for (int i = static_cast<int>(threadIdx.x); i < count * heads;
           i += static_cast<int>(blockDim.x)) {
        const std::int64_t row = first_row + (first_token - length_before) + i / heads;
        bad = bad || !is_finite(call.in.gate_logits.get(row, unit * heads + i % heads, 0));
      }
      return __syncthreads_or(bad ? 1 : 0) == 0;
    }
    return true;
  }

  /// Whether the caller's tensors have the rows that new tokens of a block are read from, in all
  /// threads.
  __device__ bool rows_exist(const SourceRows& rows, int count) const {
    if (rows.numbers == nullptr) return true;
    bool bad = false;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const std::int64_t row = rows.row(i);
      bad = bad || row < 0 || row >= call.in.num_source_rows;
    }
    return __syncthreads_or(bad ? 1 : 0) == 0;
  }

  /// One block of one stream; gives what the sequence fails with.
  template <Codec C>
  __device__ StatusCode block(Side side, int unit, int stream, const StepBlocks& blocks, int b,
                              int entries) const {
    const Ref& r = call.r;
    const ClassShape& shape = r.shape;
    const bool is_key = side == Side::key;
    const CodecContext context{side, is_key ? shape.key_width : shape.value_width};
    const int first = blocks.origin + b * block_tokens;
    const int from = first > blocks.length ? first : blocks.length;
    const int to = first + block_tokens < blocks.end ? first + block_tokens : blocks.end;
    const bool writes = to > from;
    TokenTile tile{shared, tile_stride<C>(context.width), from - first, writes ? to - from : 0};
    float* scratch = shared + tile_rows(shape, call.most_tokens) * tile.stride;
    if (shape.open) tile.x -= tile.first * tile.stride;  // there is room for new tokens only
    const int entry = entries - 1 - (blocks.last - b);
    const auto exact_offset = [&](int room) {
      return is_key ? shape.exact_key_offset(stream, room) : shape.exact_value_offset(stream, room);
    };
    if (entry < 0) return StatusCode::corrupt_data;
    const std::int32_t page = r.page(sequence, r.row_of_unit(unit), entry);
    const bool encodes = shape.open ? writes : blocks.seals(b);
    if (encodes && (page < 0 || page >= shape.num_pages)) return StatusCode::corrupt_data;
    std::byte* encoded = r.block(sequence, unit, entry) +
                         (is_key ? shape.key_offset(stream) : shape.value_offset(stream));
    std::byte* exact = nullptr;
    if (!shape.open) {
      const int turns = b < shape.ring_blocks ? 0 : b / shape.ring_blocks;
      exact = r.unit_tail(sequence, unit) +
              static_cast<std::size_t>(b - turns * shape.ring_blocks) * shape.tail_block_bytes +
              exact_offset(block_tokens);
    }
    if (writes) {
      const HeadRows& in = is_key ? call.in.keys : call.in.values;
      const int streams = is_key ? shape.unit.key_streams : shape.unit.value_streams;
      const Span<const std::int64_t> numbers = call.in.source_rows;
      const SourceRows rows{in, first_row + (from - blocks.length),
                            numbers.empty() ? nullptr : numbers.data()};
      if (!rows_exist(rows, tile.count)) return StatusCode::invalid_argument;
      // What has exact copies is encoded from them, so it is rounded as they are.
      const bool rounds = !shape.open;
      const bool turns = is_key && !Policy::projects && call.in.rope.turns != nullptr;
      if (!load_rows(rows, is_key ? call.aligned_keys : call.aligned_values,
                     unit * streams + stream, context.width, tile,
                     rounds && !turns && !HasBasis<C>) ||
          (is_key && stream == 0 && !gates_are_finite(unit, from, tile.count))) {
        return StatusCode::not_finite;
      }
      if (turns) {
        if (to > call.in.rope.positions) return StatusCode::invalid_argument;
        rotate_tile(tile, context.width, r.rope, call.in.rope, from, rounds && !HasBasis<C>);
      }
      if constexpr (HasBasis<C>) {
        turn_tile<C>(context, tile);
        if (rounds) round_tile(tile, context.width);
      }
      if (is_key && stream == 0) describe(unit, entry, first, tile);
      if (exact != nullptr) {
        store_exact(context, tile, tile.count, exact, block_tokens, tile.first);
      }
      if (from < shape.tail.sink_tokens) {
        const int sinks = shape.tail.sink_tokens < to ? shape.tail.sink_tokens : to;
        store_exact(context, tile, sinks - from,
                    r.sink_block(sequence, unit) + exact_offset(sink_block_tokens),
                    sink_block_tokens, from);
      }
      __syncthreads();
    }
    if (encodes) {
      if (!shape.open && tile.count < block_tokens) {
        tile = {shared, tile.stride, 0, block_tokens};
        load_exact(context, exact, tile);
      }
      encode_tokens<C>(context, tile, !shape.open, scratch, encoded);
      __syncthreads();
    }
    return StatusCode::ok;
  }

  /// `item`: unit and stream.
  __device__ void run(int item, const GridRecord& grid) {
    const ClassShape& shape = call.r.shape;
    const StepBlocks blocks(shape, grid, length_before, tokens);
    const int streams = shape.unit.key_streams + shape.unit.value_streams;
    const int unit = Divisor::of(streams).quotient(item);
    const int stream = item - unit * streams;
    const int entries = call.r.entry_count(sequence, call.r.row_of_unit(unit));
    for (int i = static_cast<int>(blockIdx.z); i < blocks.count; i += static_cast<int>(gridDim.z)) {
      const int b = blocks.block(i);
      const StatusCode code =
          stream < shape.unit.key_streams
              ? block<typename Policy::key_codec>(Side::key, unit, stream, blocks, b, entries)
              : block<typename Policy::value_codec>(
                    Side::value, unit, stream - shape.unit.key_streams, blocks, b, entries);
      if (code != StatusCode::ok) fail(code);
    }
  }
};

/// Grid: part x {unit, stream} x block.
template <class Ref>
__global__ void __launch_bounds__(most_append_threads, 2)
    append_kernel(const __grid_constant__ AppendCall<Ref> call) {
  extern __shared__ float append_shared[];
  const int part = static_cast<int>(blockIdx.x);
  const int parts = *call.step.num_parts;
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) {
    // A graph that was captured with fewer parts than the step has.
    for (int i = call.num_parts + static_cast<int>(threadIdx.x); i < parts;
         i += static_cast<int>(blockDim.x)) {
      const SequenceId own = call.step.parts[i].sequence;
      const SequenceRecord record = call.r.sequences[own.index];
      if (record.alive == 0 || record.generation != own.generation) continue;
      fail_sequence(call.failure, own.index, StatusCode::wrong_phase, call.slot,
                    record.length_tokens);
    }
  }
  if (part >= parts) return;
  const StepPart step = call.step.parts[part];
  const int first_row = call.step.first_rows[part];
  const SequenceRecord sequence = call.r.sequences[step.sequence.index];
  const GridRecord grid = call.r.grids[step.sequence.index];
  // Another thread block may be about to fail the sequence: all threads of one must agree.
  if (__syncthreads_or(sequence.failed) != 0) return;
  // The graph of a sequence that is gone: this one has nothing to do with it.
  if (sequence.alive == 0 || sequence.generation != step.sequence.generation) return;
  AppendKernel<Ref> kernel{call,        append_shared, step.sequence.index,
                           step.tokens, first_row,     static_cast<int>(sequence.length_tokens)};
  if (sequence.pending_tokens != step.tokens || step.tokens > call.most_tokens ||
      std::int64_t{first_row} + step.tokens > call.num_rows) {
    return kernel.fail(StatusCode::wrong_phase);
  }
  kernel.run(static_cast<int>(blockIdx.y), grid);
}

/// Shared memory of a thread block.
template <class Ref>
[[nodiscard]] std::size_t append_shared_bytes(const ClassShape& shape, int most_tokens) noexcept {
  return encode_shared_bytes<Ref>(shape, tile_rows(shape, most_tokens));
}

/// Blocks of a part that a step of `tokens` tokens may write to or seal, at most.
[[nodiscard]] inline int most_step_blocks(const ClassShape& shape, int tokens) noexcept {
  const int written = (tokens + block_tokens - 2) / block_tokens + 1;
  if (shape.open) return written;
  const int granule = shape.tail.granule_tokens;
  return written + ceil_div(tokens, granule) * (granule / block_tokens);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
