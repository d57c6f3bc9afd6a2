/// Export of one layer of a cache to an engine's plain pages, in one launch.
///
/// A thread block has a unit of a sequence and a run of its entries. Where their tokens go follows
/// from the live tokens before them, which every thread block counts for itself, so that none waits
/// for another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/export_plain.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/tile_basis.cuh"
#include "terse/cuda/append/token_tile.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int export_threads = 256;

/// Everything that the kernel is given. Pointers are the device's.
template <class Ref>
struct ExportCall {
  Ref r;
  const SequenceId* sequences;  // [table row]
  PlainPages pages;
  PlainOutputs out;
};

/// In shared memory, in front of the tile.
struct ExportScratch {
  std::int64_t offsets[block_tokens];  ///< of the entry's tokens, in elements
  std::int32_t tokens[block_tokens];   ///< their places in the entry
  unsigned long long sums[2];
};

[[nodiscard]] TERSE_HOST_DEVICE inline int export_stride(int width) noexcept {
  return width + 1;  // lanes that each have a token then meet in no bank
}
[[nodiscard]] inline std::size_t export_shared_bytes(const ClassShape& shape) noexcept {
  const int widest = shape.key_width > shape.value_width ? shape.key_width : shape.value_width;
  return sizeof(ExportScratch) +
         static_cast<std::size_t>(block_tokens * export_stride(widest)) * sizeof(float);
}

template <class Ref>
struct UnitExport {
  using Policy = typename Ref::policy;
  using Reader = terse::detail::EntryReader<Ref>;

  const ExportCall<Ref>& call;
  ExportScratch& scratch;
  float* shared;
  int table_row;
  int sequence;
  int unit;

  /// Counts the live tokens of the unit, and those before entry `from`. Whether it can be exported.
  /// By all threads, in which the results are the same.
  __device__ StatusCode count(int entries, int from, std::int64_t* total,
                              std::int64_t* before) const {
    const Ref& r = call.r;
    const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if (thread < 2) scratch.sums[thread] = 0;
    __syncthreads();
    unsigned long long own_total = 0, own_before = 0;
    bool lost = false;
    for (int e = thread; e < entries; e += threads) {
      const Reader entry(r, sequence, unit, e);
      const auto n = static_cast<unsigned>(count_ones(entry.live));
      own_total += n;
      if (e < from) own_before += n;
      const std::int32_t page = r.page(sequence, r.row_of_unit(unit), e);
      lost = lost || (entry.decoded != 0 && (page < 0 || page >= r.shape.num_pages));
    }
    if (own_total > 0) atomicAdd(&scratch.sums[0], own_total);
    if (own_before > 0) atomicAdd(&scratch.sums[1], own_before);
    if (__syncthreads_or(lost ? 1 : 0) != 0) return StatusCode::corrupt_data;
    *total = static_cast<std::int64_t>(scratch.sums[0]);
    *before = static_cast<std::int64_t>(scratch.sums[1]);
    const StatusCode fits = terse::detail::check_places(call.pages, call.out, table_row, *total);
    if (fits != StatusCode::ok) return fits;
    const bool bad = terse::detail::has_bad_page(
        call.pages, table_row, ceil_div(*total, std::int64_t{call.pages.page_tokens}), thread,
        threads);
    return __syncthreads_or(bad ? 1 : 0) != 0 ? StatusCode::invalid_argument : StatusCode::ok;
  }

  /// One side of `tokens` tokens of an entry. By all threads, which meet at the end.
  template <Codec C>
  __device__ void write(const Reader& entry, Side side, int tokens) const {
    const bool is_key = side == Side::key;
    const CodecContext context = call.r.context(side, unit, 0);
    const TokenTile tile{shared, export_stride(context.width), 0, tokens};
    const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    // Neighbouring lanes have neighbours as they are stored: keys by token, values by channel.
    const int inner = is_key ? tokens : context.width;
    for (int i = thread; i < tokens * context.width; i += threads) {
      const int row = is_key ? i % inner : i / inner, channel = is_key ? i / inner : i % inner;
      tile.row(row)[channel] = entry.template load<C>(side, 0, scratch.tokens[row], channel);
    }
    __syncthreads();
    turn_tile<C, false>(context, tile);
    const MutableHeadRows to =
        terse::detail::elements_of(call.pages, is_key ? call.out.keys : call.out.values);
    for (int row = thread / 32; row < tokens; row += threads / 32) {
      for (int c = thread % 32; c < context.width; c += 32) {
        to.put(scratch.offsets[row], unit, c, tile.row(row)[c]);
      }
    }
    __syncthreads();
  }

  /// The live tokens of an entry, at `place` and later. Gives their number.
  __device__ int write_entry(int e, std::int64_t place) const {
    const Reader entry(call.r, sequence, unit, e);
    if (entry.live == 0) return 0;
    const auto token = static_cast<int>(threadIdx.x);
    if (token < block_tokens && (entry.live >> token & 1u) != 0) {
      const int rank = count_ones(entry.live & ((std::uint64_t{1} << token) - 1));
      scratch.tokens[rank] = token;
      scratch.offsets[rank] = call.pages.offset(table_row, place + rank);
      if (call.out.positions != nullptr) {
        call.out.positions[terse::detail::count_index(call.r, table_row, unit) *
                               static_cast<std::size_t>(call.out.max_places) +
                           static_cast<std::size_t>(place + rank)] =
            static_cast<std::int32_t>(call.r.position(sequence, unit, e, token));
      }
    }
    __syncthreads();
    const int tokens = count_ones(entry.live);
    write<typename Policy::key_codec>(entry, Side::key, tokens);
    write<typename Policy::value_codec>(entry, Side::value, tokens);
    return tokens;
  }
};

/// Grid: {table row, unit} x run of entries.
template <class Ref>
__global__ void __launch_bounds__(export_threads)
    export_kernel(const __grid_constant__ ExportCall<Ref> call) {
  extern __shared__ __align__(16) std::byte export_shared[];
  const Ref& r = call.r;
  const int units = r.shape.unit.units;
  const int table_row = static_cast<int>(blockIdx.x) / units;
  const SequenceId id = call.sequences[table_row];
  const UnitExport<Ref> unit{call,
                             *reinterpret_cast<ExportScratch*>(export_shared),
                             reinterpret_cast<float*>(export_shared + sizeof(ExportScratch)),
                             table_row,
                             id.index,
                             static_cast<int>(blockIdx.x) % units};
  StatusCode code = terse::detail::check_exported(r, id);
  if (code != StatusCode::stale_sequence && r.sequences[id.index].failed != 0) {
    code = static_cast<StatusCode>(r.sequences[id.index].failed);
  }
  std::int64_t total = 0, place = 0;
  int from = 0, to = 0;
  if (code == StatusCode::ok) {
    const std::int64_t entries = r.entry_count(id.index, r.row_of_unit(unit.unit));
    from = static_cast<int>(entries * blockIdx.y / gridDim.y);
    to = static_cast<int>(entries * (blockIdx.y + 1) / gridDim.y);
    code = unit.count(static_cast<int>(entries), from, &total, &place);
  }
  if (blockIdx.y == 0 && threadIdx.x == 0) {
    call.out.tokens[terse::detail::count_index(r, table_row, unit.unit)] =
        code == StatusCode::ok ? static_cast<std::int32_t>(total)
                               : -static_cast<std::int32_t>(code);
  }
  if (code != StatusCode::ok) return;
  for (int e = from; e < to; ++e) place += unit.write_entry(e, place);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
