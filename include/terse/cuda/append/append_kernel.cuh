/// Appending of a step's tokens to one slot: basis, tail or code, sealing, in one launch.
///
/// A thread block has one stream of one unit of one part, and blocks of 64 places in turn: those
/// that the step writes to, and those that it seals. A block that is both is written first, so that
/// nothing has to wait for another thread block. Which blocks these are follows from lengths that
/// lie on the device, so a captured launch may be replayed after they have changed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/cache/append.hpp"
#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/cuda/append/divisor.cuh"
#include "terse/cuda/append/encode.cuh"
#include "terse/cuda/append/encode_patch.cuh"
#include "terse/cuda/append/tile_basis.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/cache/failure.cuh"
#include "terse/cuda/cache/step_record.cuh"
#include "terse/cuda/warp/dense_turn.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/cuda/warp/prefetch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Warps round vectors of one side.
template <class Ref>
inline constexpr bool rounds_by_warps = RoundsByWarps<typename Ref::policy::key_codec> ||
                                        RoundsByWarps<typename Ref::policy::value_codec>;

/// Of both: each of a block's tokens is long work for a warp, and can be encoded by itself.
template <class Ref>
inline constexpr bool can_seal_in_pieces = RoundsByWarps<typename Ref::policy::key_codec>&&
    RoundsByWarps<typename Ref::policy::value_codec>;

/// Most threads of a thread block; vectors that warps round channel by channel take twice the
/// registers.
template <class Ref>
inline constexpr int most_append_threads = rounds_by_warps<Ref> ? 256 : 512;

/// Most tokens of a part of a step as decoding takes them.
inline constexpr int most_decoded_tokens = 7;

/// Pieces of a block that is sealed by several thread blocks: of eight tokens, one for each warp.
inline constexpr int pieces_of_block = 8;
inline constexpr int piece_tokens = block_tokens / pieces_of_block;
static_assert(piece_tokens > most_decoded_tokens, "a piece's tile has room for a step's tokens");
static_assert(piece_tokens % 8 == 0, "load_tail takes eights, and scratch is aligned behind fours");

/// How a launch goes about its work: what host and device must agree on.
struct AppendLaunch {
  int tile_rows;  ///< of a thread block's tile
  int pieces;     ///< of a block that lay in the tail and is sealed: 1 or pieces_of_block
  bool stages;    ///< EncodeScratch::stages
};

/// Everything that the kernel is given. Pointers are the device's.
template <class Ref>
struct AppendCall {
  Ref r;
  AppendInputs in;
  StepView step;
  FailureTables failure;
  int slot;         // counted over all classes
  int num_parts;    // that the grid serves
  int most_tokens;  // of a part
  AppendLaunch launch;
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

/// The stream of a thread block, by its place in the grid.
struct StreamOfItem {
  int unit, stream;
  bool is_key;

  __device__ StreamOfItem(const UnitShape& shape, int item) {
    const int streams = shape.key_streams + shape.value_streams;
    unit = Divisor::of(streams).quotient(item);
    stream = item - unit * streams;
    is_key = stream < shape.key_streams;
    if (!is_key) stream -= shape.key_streams;
  }
};

/// One block of 64 places of one stream, and what a step does to it. The same for all threads of a
/// thread block, so that one of them finds it.
struct BlockWork {
  int index;  ///< among those of the part
  int count;  ///< of the part; 0: there is nothing to do
  int sequence;
  int length_before;  ///< committed tokens
  int first_row;      ///< of the part, in the inputs
  int unit, stream;
  bool is_key;              ///< `stream` is one of keys
  bool encodes;             ///< new tokens, or all
  bool only_copies;         ///< its codes lie in the tail (encode_ahead)
  int first_place, places;  ///< of the piece that is sealed, or of the block
  int block;                ///< counted from the grid's origin
  int entry;
  int first;     ///< position of place 0
  int from, to;  ///< positions of new tokens, none: the same
  // What is found while the numbers are read.
  StatusCode code;  ///< what the sequence fails with
  std::byte* encoded;
  std::byte* tail;  ///< null without one
};

/// Bytes of it in shared memory, in front of what blocks are encoded in.
inline constexpr std::size_t work_bytes = round_up(sizeof(BlockWork), std::size_t{16});

template <class Ref>
struct AppendKernel {
  using Policy = typename Ref::policy;
  using TailForm = typename Policy::tail_codec;
  static constexpr bool can_be_open =
      CanEncodeToken<typename Policy::key_codec> && CanEncodeToken<typename Policy::value_codec>;
  static constexpr bool has_state = token_state_bytes<typename Policy::evictor> > 0;

  const AppendCall<Ref>& call;
  float* shared;
  BlockWork& work;

  /// By one thread.
  __device__ void fail(StatusCode code) const {
    fail_sequence(call.failure, work.sequence, code, call.slot, work.length_before);
  }

  /// Fills `work` with the thread block's `i`-th block, and finds its place if there is nothing to
  /// read meanwhile. By one thread, which asks for all that it may need before it looks at any of
  /// it.
  __device__ void find_block(int i) const {
    const Ref& r = call.r;
    const ClassShape& shape = r.shape;
    const auto part = static_cast<int>(blockIdx.x), item = static_cast<int>(blockIdx.y);
    const StepPart step = call.step.parts[part];
    const int first_row = call.step.first_rows[part];
    const bool exists = part < *call.step.num_parts;
    const int index = exists ? step.sequence.index : 0;
    const StreamOfItem of_item(shape.unit, item);
    const int unit = of_item.unit;
    const SequenceRecord sequence = r.sequences[index];
    const GridRecord grid = r.grids[index];
    const int entries = r.entry_count(index, r.row_of_unit(unit));
    const StepBlocks blocks(shape, grid, sequence.length_tokens, step.tokens);
    // The graph of a sequence that is gone: this one has nothing to do with it.
    const bool is_meant = exists && sequence.failed == 0 && sequence.alive != 0 &&
                          sequence.generation == step.sequence.generation;
    const bool fits = sequence.pending_tokens == step.tokens && step.tokens <= call.most_tokens &&
                      std::int64_t{first_row} + step.tokens <= call.num_rows;
    int item_of_blocks = i, piece = 0, places = block_tokens, more_items = 0;
    if constexpr (can_seal_in_pieces<Ref>) {
      if (call.launch.pieces > 1) {
        more_items = blocks.only_sealed * (pieces_of_block - 1);
        const bool is_piece = i < blocks.only_sealed * pieces_of_block;
        item_of_blocks = is_piece ? i / pieces_of_block : i - more_items;
        piece = is_piece ? i % pieces_of_block : 0;
        places = is_piece ? piece_tokens : block_tokens;
      }
    }
    const int b = blocks.block(item_of_blocks);
    const int first = blocks.origin + b * block_tokens;
    const int from = first > blocks.length ? first : blocks.length;
    const int to = first + block_tokens < blocks.end ? first + block_tokens : blocks.end;
    work.index = i;
    work.count = is_meant && fits ? blocks.count + more_items : 0;
    work.sequence = index;
    work.length_before = static_cast<int>(sequence.length_tokens);
    work.first_row = first_row;
    work.unit = unit;
    work.stream = of_item.stream;
    work.is_key = of_item.is_key;
    work.encodes = shape.open ? to > from : blocks.seals(b);
    work.block = b;
    work.entry = entries - 1 - (blocks.last - b);
    work.first = first;
    work.from = from;
    work.to = to > from ? to : from;
    work.only_copies = false;
    if (shape.encodes_ahead && work.encodes && to <= from) {
      work.only_copies = *ahead_mark(tail_block()) == ClassShape::all_ahead;
    }
    work.first_place = piece * piece_tokens;
    work.places = places;
    if (is_meant && !fits) fail(StatusCode::wrong_phase);
  }

  [[nodiscard]] __device__ Side side() const { return work.is_key ? Side::key : Side::value; }
  /// The block's place in the tail, all streams.
  [[nodiscard]] __device__ std::byte* tail_block() const {
    const auto b = static_cast<unsigned>(work.block);
    const auto ring_blocks = static_cast<unsigned>(call.r.shape.ring_blocks);
    const unsigned in_ring = b < ring_blocks ? b : b % ring_blocks;
    return call.r.unit_tail(work.sequence, work.unit) + in_ring * call.r.shape.tail_block_bytes;
  }
  /// ClassShape::ahead_mark_offset of the stream.
  [[nodiscard]] __device__ std::uint32_t* ahead_mark(std::byte* tail) const {
    return reinterpret_cast<std::uint32_t*>(tail +
                                            call.r.shape.ahead_mark_offset(side(), work.stream));
  }

  /// Finds where the block is stored. By one thread.
  __device__ void find_place() const {
    const Ref& r = call.r;
    const ClassShape& shape = r.shape;
    const int index = work.sequence, unit = work.unit, entry = work.entry;
    work.code = StatusCode::corrupt_data;
    if (entry < 0) return;
    const std::int32_t page = r.page(index, r.row_of_unit(unit), entry);
    const bool exists = page >= 0 && page < shape.num_pages;
    work.encoded =
        r.block_of_page(exists ? page : 0, unit) + shape.code_offset(side(), work.stream);
    work.tail = nullptr;
    if (!shape.open) {
      work.tail = tail_block() + shape.tail_offset(side(), work.stream);
    }
    if (exists || !work.encodes) work.code = StatusCode::ok;
  }
  /// By the thread that finds it: one of the last warp, which has the fewest numbers to read.
  __device__ void find_place_once() const {
    if (threadIdx.x == blockDim.x - 32) find_place();
  }

  /// Masks, positions and evictor state of a block's new tokens. By the key stream 0 of a unit.
  __device__ void describe() const {
    const Ref& r = call.r;
    const int unit = work.unit, new_from = work.from - work.first, count = work.to - work.from;
    const std::size_t at = r.unit_entry(work.sequence, unit, work.entry);
    const bool is_fresh = work.first >= work.length_before;
    if (threadIdx.x == 0) {
      const std::uint64_t bits = (count == block_tokens ? ~0ull : (1ull << count) - 1) << new_from;
      // Places from the first new one on may still have the bits of a step that was given up.
      const std::uint64_t older = is_fresh ? 0 : r.live[at] & ((1ull << new_from) - 1);
      r.live[at] = older | bits;
      if (is_fresh) r.first_positions[at] = work.first;
      if (unit == 0) r.was_appended(work.sequence) = 1;
    }
    if constexpr (Ref::scatters) {
      if (is_fresh && threadIdx.x < block_tokens) {
        r.position_deltas[at * block_tokens + threadIdx.x] =
            static_cast<std::uint16_t>(threadIdx.x);
      }
    }
    if constexpr (has_state) {
      const int place = static_cast<int>(threadIdx.x), t = place - new_from;
      const bool is_new = t >= 0 && t < count;
      if (is_new || (is_fresh && place < block_tokens)) {
        auto& state = r.token_states[at * block_tokens + static_cast<std::size_t>(place)];
        state = {};
        if constexpr (Policy::signal == Signal::gate_logit) {
          const std::int64_t row = work.first_row + (work.first - work.length_before) + place;
          for (int h = 0; is_new && h < r.shape.unit.heads_per_unit; ++h) {
            Policy::evictor::admit(
                state, call.in.gate_logits.get(row, unit * r.shape.unit.heads_per_unit + h, 0));
          }
        }
      }
    }
  }

  /// Whether the gate logits of the block's new tokens are numbers, in all threads.
  __device__ bool gates_are_finite() const {
    if constexpr (Policy::signal == Signal::gate_logit) {
      const int heads = call.r.shape.unit.heads_per_unit, count = work.to - work.from;
      bool bad = false;
      for (int i = static_cast<int>(threadIdx.x); i < count * heads;
           i += static_cast<int>(blockDim.x)) {
        const std::int64_t row = work.first_row + (work.from - work.length_before) + i / heads;
        bad = bad || !is_finite(call.in.gate_logits.get(row, work.unit * heads + i % heads, 0));
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

  /// Stores a whole block that comes as 16-bit numbers and is stored in their basis: its copy in
  /// the tail, or none, and its codes. Gives false, with nothing done, if not all are numbers that
  /// fp16 can hold; nothing is done either if `work` has found an error. By all threads.
  template <Codec C, Side S, class T>
  __device__ bool store_patches(const SourceRows& rows, int head, int width, float* scratch) const {
    const auto place = PatchPlace::own<S>();
    Patch patch{};
    if (place.channel() < width) patch = load_patch(rows, head, place);
    find_place_once();
    const bool rounds = std::is_same_v<T, F16> && rows.in.scalar == Scalar::bf16;
    const bool within = rounds ? is_within_f16<BF16>(patch) : is_within_f16<T>(patch);
    if (rounds) make_f16(patch);
    if (work.encodes) begin_patches<C, T>(patch, place, width, shared, scratch);
    if (__syncthreads_and(within ? 1 : 0) == 0) return false;
    if (work.code != StatusCode::ok) return true;
    if (work.tail != nullptr && place.channel() < width) {
      store_f16<S>(patch, place, width, work.tail);
    }
    forget_codes();
    if (work.encodes) {
      encode_patches<C, S, T>(patch, place, width, shared, scratch, work.encoded);
    }
    return true;
  }

  /// New tokens have come to the block: codes that wait in the tail are those of others.
  __device__ void forget_codes() const {
    if (call.r.shape.encodes_ahead && threadIdx.x == 0) *ahead_mark(tail_block()) = 0;
  }

  /// Stores the tile's tokens in the tail, and may write over the tile. By all threads, which do
  /// not meet at the end.
  __device__ void store_tail(const CodecContext& context, const TokenTile& tile,
                             const EncodeScratch& scratch) const {
    forget_codes();
    if constexpr (has_f16_tail<Policy>) {
      store_tokens_f16(context, tile, tile.count, work.tail, block_tokens, tile.first);
    } else {
      encode_tokens<TailForm>(context, tile, false, {scratch.tail, nullptr, false}, work.tail);
    }
  }

  /// Copies codes that lie in the tail: of a piece its share. By all threads, which have found the
  /// place and do not meet at the end.
  __device__ void copy_codes(std::size_t bytes) const {
    const auto vectors = static_cast<int>(bytes / sizeof(uint4));
    const auto* from =
        reinterpret_cast<const uint4*>(work.tail - call.r.shape.tail_offset(side(), work.stream) +
                                       call.r.shape.ahead_offset(side(), work.stream));
    auto* to = reinterpret_cast<uint4*>(work.encoded);
    const int end = (work.first_place + work.places) * vectors / block_tokens;
    for (int i = work.first_place * vectors / block_tokens + static_cast<int>(threadIdx.x); i < end;
         i += static_cast<int>(blockDim.x)) {
      to[i] = from[i];
    }
  }

  /// The work on a block of one stream; gives what the sequence fails with.
  template <Codec C, Side S>
  __device__ StatusCode block() const {
    const Ref& r = call.r;
    const ClassShape& shape = r.shape;
    constexpr bool is_key = S == Side::key;
    const int from = work.from, to = work.to, stream = work.stream;
    const CodecContext context = r.context(S, work.unit, stream);
    TokenTile tile{shared, tile_stride<C>(context.width), from - work.first, to - from};
    float* const behind = shared + call.launch.tile_rows * tile.stride;
    const EncodeScratch scratch{
        behind, behind + scratch_floats<C>(context.width, call.launch.stages), call.launch.stages};
    if (work.only_copies) {
      find_place_once();
      __syncthreads();
      if (work.code == StatusCode::ok) {
        copy_codes(shape.record(S).bytes);
      }
      return work.code;
    }
    if (work.encodes) begin_encoding<C>(context, scratch);
    if (to > from) {
      const HeadRows& in = is_key ? call.in.keys : call.in.values;
      const bool aligned = is_key ? call.aligned_keys : call.aligned_values;
      const int streams = is_key ? shape.unit.key_streams : shape.unit.value_streams;
      const int head = work.unit * streams + stream;
      const Span<const std::int64_t> numbers = call.in.source_rows;
      const SourceRows rows{in, work.first_row + (from - work.length_before),
                            numbers.empty() ? nullptr : numbers.data()};
      if (!rows_exist(rows, tile.count)) return StatusCode::invalid_argument;
      if (is_key && stream == 0 && !gates_are_finite()) return StatusCode::not_finite;
      // What lies in the tail is encoded from there, so it is rounded as it is there.
      const bool rounds = has_f16_tail<Policy> && !shape.open;
      const bool turns = is_key && !Policy::projects && call.in.rope.turns != nullptr;
      if constexpr (encodes_patches<C>) {
        if (tile.count == block_tokens && (has_f16_tail<Policy> || shape.open) && aligned &&
            in.scalar != Scalar::f32 && !turns && from >= shape.tail.sink_tokens &&
            holds_block(context.width, static_cast<int>(blockDim.x))) {
          bool done;
          if (can_be_open && !rounds && in.scalar == Scalar::bf16) {
            done = store_patches<C, S, std::conditional_t<can_be_open, BF16, F16>>(
                rows, head, context.width, scratch.floats);
          } else {
            done = store_patches<C, S, F16>(rows, head, context.width, scratch.floats);
          }
          if (done) {
            if (is_key && stream == 0 && work.code == StatusCode::ok) describe();
            return work.code;
          }
        }
      }
      // There is room for new tokens only.
      if (call.launch.tile_rows < block_tokens) tile.x -= tile.first * tile.stride;
      find_place_once();
      const bool are_finite =
          load_rows(rows, aligned, head, context.width, tile, rounds && !turns && !HasBasis<C>);
      if (work.code != StatusCode::ok) return work.code;
      if (!are_finite) return StatusCode::not_finite;
      if (turns) {
        if (to > call.in.rope.positions) return StatusCode::invalid_argument;
        rotate_tile(tile, context.width, r.rope, call.in.rope, from, rounds && !HasBasis<C>);
      }
      if constexpr (HasBasis<C>) {
        turn_tile<C>(context, tile);
        if (rounds) round_tile(tile, context.width);
      }
      if (!has_f16_tail<Policy> && !shape.open) limit_tile(tile, context.width, tail_max);
      if (is_key && stream == 0) describe();
      constexpr bool overwrites = FindsCodesFirst<TailForm>;
      if (!overwrites && work.tail != nullptr) store_tail(context, tile, scratch);
      if (from < shape.tail.sink_tokens) {
        const int sinks = shape.tail.sink_tokens < to ? shape.tail.sink_tokens : to;
        store_tokens_f16(context, tile, sinks - from,
                         r.sink_block(work.sequence, work.unit) + shape.sink_offset(S, stream),
                         sink_block_tokens, from);
      }
      if constexpr (overwrites) {
        __syncthreads();
        if (work.tail != nullptr) store_tail(context, tile, scratch);
      }
      __syncthreads();
    } else {
      find_place_once();
      __syncthreads();
      if (work.code != StatusCode::ok) return work.code;
    }
    if (work.encodes) {
      if (!shape.open && (!has_f16_tail<Policy> || tile.count < block_tokens)) {
        const int first = work.first_place;
        tile = {shared - (call.launch.tile_rows < block_tokens ? first * tile.stride : 0),
                tile.stride, first, work.places};
        load_tail<TailForm>(context, work.tail, tile);
      }
      encode_tokens<C>(context, tile, !shape.open, scratch, work.encoded);
    }
    return StatusCode::ok;
  }

  /// By all threads.
  __device__ void run() const {
    if (threadIdx.x == 0) find_block(static_cast<int>(blockIdx.z));
    __syncthreads();
    while (work.index < work.count) {
      const StatusCode code = work.is_key ? block<typename Policy::key_codec, Side::key>()
                                          : block<typename Policy::value_codec, Side::value>();
      if (code != StatusCode::ok) {
        if constexpr (rounds_by_warps<Ref>)
          wait_for_feedback();  // copies that the error left in flight
        if (threadIdx.x == 0) fail(code);
      }
      const int next = work.index + static_cast<int>(gridDim.z);
      if (next >= work.count) return;
      __syncthreads();
      if (threadIdx.x == 0) find_block(next);
      __syncthreads();
    }
  }
};

/// Asks for a stream's calibration as far as a step is sure to need it: what tokens are turned by
/// and, if `encodes`, what they are rounded by. By all threads.
template <class C>
__device__ void prefetch_calibration(const CodecContext& context, bool encodes) {
  if constexpr (HasDenseBasis<C>) {
    if (context.calibration == nullptr) return;
    constexpr auto size = static_cast<int>(sizeof(float));
    const CalibrationLayout at{context.width};
    // What comes first: means, weights, the matrix into the basis.
    prefetch_together(context.calibration, static_cast<int>(at.from_basis()) * size);
    if constexpr (RoundsByWarps<C>) {
      const float* feedback = context.calibration + at.feedback();
      if (encodes) prefetch_together(feedback, context.width * context.width * size);
    }
  }
}

/// prefetch_calibration of the thread block's stream, by those of the first part: it is known
/// before the step is.
template <class Ref>
__device__ __forceinline__ void prefetch_stream(const Ref& r) {
  if constexpr (uses_calibration<typename Ref::policy>) {
    if (blockIdx.x != 0 || blockIdx.z != 0) return;
    const StreamOfItem own(r.shape.unit, static_cast<int>(blockIdx.y));
    if (own.is_key) {
      prefetch_calibration<typename Ref::policy::key_codec>(
          r.context(Side::key, own.unit, own.stream), r.shape.open);
    } else {
      prefetch_calibration<typename Ref::policy::value_codec>(
          r.context(Side::value, own.unit, own.stream), r.shape.open);
    }
  }
}

/// Grid: part x {unit, stream} x block.
template <class Ref>
__global__ void __launch_bounds__(most_append_threads<Ref>, 2)
    append_kernel(const __grid_constant__ AppendCall<Ref> call) {
  extern __shared__ __align__(16) float append_shared[];
  prefetch_stream(call.r);
  wait_for_previous_kernel();
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) {
    // A graph that was captured with fewer parts than the step has.
    const int parts = *call.step.num_parts;
    for (int i = call.num_parts + static_cast<int>(threadIdx.x); i < parts;
         i += static_cast<int>(blockDim.x)) {
      const SequenceId own = call.step.parts[i].sequence;
      const SequenceRecord record = call.r.sequences[own.index];
      if (record.alive == 0 || record.generation != own.generation) continue;
      fail_sequence(call.failure, own.index, StatusCode::wrong_phase, call.slot,
                    record.length_tokens);
    }
  }
  AppendKernel<Ref>{call, append_shared + work_bytes / sizeof(float),
                    *reinterpret_cast<BlockWork*>(append_shared)}
      .run();
}

/// The shape of a step of up to `most_tokens` tokens a part; `is_small`: with a thread block for
/// each block most of the device is idle.
template <class Ref>
[[nodiscard]] AppendLaunch append_launch(const ClassShape& shape, int most_tokens,
                                         bool is_small) noexcept {
  const bool decodes = most_tokens <= most_decoded_tokens;
  // What is sealed then lay in the tail before, and no thread block writes to it.
  const bool seals_apart = !shape.open && shape.tail.min_tokens >= most_tokens;
  const bool in_pieces = can_seal_in_pieces<Ref> && decodes && is_small && seals_apart;
  AppendLaunch result{block_tokens, in_pieces ? pieces_of_block : 1,
                      rounds_by_warps<Ref> && decodes && (shape.open || in_pieces)};
  // A multiple of four, so that what lies behind the tile is aligned whatever the stride.
  if (shape.open && most_tokens < block_tokens) result.tile_rows = round_up(most_tokens, 4);
  if (in_pieces) result.tile_rows = piece_tokens;
  return result;
}

/// Shared memory of a thread block.
template <class Ref>
[[nodiscard]] std::size_t append_shared_bytes(const ClassShape& shape,
                                              const AppendLaunch& launch) noexcept {
  return work_bytes + encode_shared_bytes<Ref>(shape, launch.tile_rows, launch.stages);
}

/// Blocks, or pieces, of a part that a step of `tokens` tokens may write to or seal, at most. What
/// it seals without writing to it lay in the tail before.
[[nodiscard]] inline int most_step_blocks(const ClassShape& shape, int tokens,
                                          int pieces) noexcept {
  const int written = (tokens + block_tokens - 2) / block_tokens + 1;
  if (shape.open) return written;
  const int granule = shape.tail.granule_tokens;
  const int sealed = ceil_div(tokens, granule) * (granule / block_tokens);
  const int in_tail = ceil_div(shape.tail.min_tokens + granule, block_tokens);
  return written + (sealed < in_tail ? sealed : in_tail) * pieces;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
