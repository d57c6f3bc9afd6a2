/// How the thread blocks of one fixed grid share an attend call, decided on the device from the
/// lengths that lie there, so that a captured launch serves any lengths.
///
/// Work is laid out on one line: part after part, list after list, KV head after KV head, tile of
/// query vectors after tile. A head's stretch begins with empty places, for the time that it takes
/// to begin and to end one; then follow one place per entry that is read decoded and `exact_places`
/// places per block of exact tokens. Thread block b of B takes the places from total / B * b on,
/// the first total % B of them one more. Where all stretches are equally long, each thread block
/// takes whole ones, or each stretch whole thread blocks, of which one at least stays free, unless
/// that takes longer.
#pragma once

#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/core/head_rows.hpp"
#include "terse/policy/evictor.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Everything a kernel of one attend call is given. Pointers are the device's.
template <class Ref>
struct AttendCall {
  Ref r;
  const StepPart* parts;  // [part]
  int num_parts;
  int num_rows;  // rows that queries and output have room for
  HeadRows queries;
  MutableHeadRows output;
  float* lse_ln;
  AttendParams params;
  int group;    // query heads of a KV head
  float scale;  // of the logits, in units of log2
  int exact_places;
  int segment_places;  // empty ones
  bool lengths_are_settled;
  float* partial_sums;     // [2 * grid, vector, width]
  float2* partial_states;  // [2 * grid, vector]: {base, denominator}
  BytesRead* bytes_read;   // [part, unit] or null
  unsigned* arrivals;      // [part, KV head, tile]: zero between calls
};

/// One list of entries of one part: the same for all KV heads and tiles that share it.
struct ListWork {
  int sequence = 0;
  int rows = 0;          ///< query rows of the part
  int decoded = 0;       ///< leading entries that some row reads decoded
  int plain_end = 0;     ///< leading entries of which every row reads the tokens that live, decoded
  int unwritten = 0;     ///< leading entries of which a step's append writes nothing in the tables
  int settled = 0;       ///< leading entries of which it does not write the codes either
  int exact_first = 0;   ///< first entry that some row may read exactly
  int exact_blocks = 0;  ///< such entries
  int exact_items = 0;   ///< exact_blocks, and one more for the sinks
  int exact_place = 0;   ///< of the tail, where exact_first's copies lie
  /// One row, and its exact entries are the grid's newest blocks, one each.
  bool exact_in_order = false;
  int origin = 0;
  int oldest = 0;  ///< position of the first query row
  int places = 0;  ///< of a stretch, without the empty ones
  int heads = 0;   ///< KV heads times tiles
  int tiles = 0;
};

/// KV heads that share a list of entries. Only projectors join several in a unit.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ int heads_per_list(const ClassShape& shape) {
  if constexpr (Ref::policy::projects) {
    return shape.units_per_row * shape.unit.heads_per_unit;
  } else {
    return shape.units_per_row;
  }
}

template <class Ref>
[[nodiscard]] __device__ ListWork list_work(const AttendCall<Ref>& call, int index,
                                            int tile_vectors) {
  const Ref& r = call.r;
  const int part = r.shape.rows == 1 ? index : index / r.shape.rows;
  const int list = r.shape.rows == 1 ? 0 : index - part * r.shape.rows;
  const StepPart step = call.parts[part];
  const int i = step.sequence.index;
  const bool in_range = i >= 0 && i < r.shape.sequences;
  const int safe = in_range ? i : 0;
  // All loads before the first decision, so that they wait for memory together.
  const SequenceRecord sequence = r.sequences[safe];
  const GridRecord grid = r.grids[safe];
  const int count = clamp(r.entry_count(safe, list), 0, r.shape.entries);

  ListWork w;
  w.rows = step.tokens > 0 ? step.tokens : 0;
  if (w.rows == 0) return w;
  w.tiles = ceil_div(w.rows * call.group, tile_vectors);
  w.heads = heads_per_list<Ref>(r.shape) * w.tiles;
  w.places = 1;  // a row that sees nothing is written too
  w.sequence = -1;
  if (!in_range || sequence.alive == 0 || sequence.generation != step.sequence.generation) return w;
  // An append in front may make it fail meanwhile: its places stay, so that all thread blocks
  // divide the same line.
  if (sequence.failed == 0) w.sequence = i;
  // Positions are below 2^31; divisions of 64 bits would cost more than all else here.
  const int visible = static_cast<int>(sequence.length_tokens) + sequence.pending_tokens;
  w.oldest = visible - w.rows;
  if (visible <= 0 || count <= 0) return w;
  const int origin = static_cast<int>(grid.origin);
  const int sealed_end = static_cast<int>(grid.sealed_end);
  const int newest = visible - 1;
  const int oldest = w.oldest > 0 ? w.oldest : 0;
  const int newest_block = (newest - origin) >> 6;
  static_assert(block_tokens == 64);
  // From sealed_end on a row's entries are the grid's blocks, one each, whatever an evictor did.
  const auto entry_of = [&](int position) {
    return clamp(count - 1 - newest_block + ((position - origin) >> 6), 0, count);
  };
  w.origin = origin;
  w.unwritten = entry_of(static_cast<int>(sequence.length_tokens));
  w.settled = r.shape.open ? w.unwritten : entry_of(sealed_end);
  if (r.shape.open) {
    const int end = oldest + 1;  // what all rows see
    w.decoded = count;
    const bool sees_all = !call.params.causal || w.rows == 1;
    w.plain_end = sees_all ? count : (end >= sealed_end ? entry_of(end) : 0);
  } else {
    const int exact_begin = static_cast<int>(grid.exact_begin);
    const int granule = r.shape.tail.granule_tokens;
    const auto sealed_before = [&](int position) {  // as KVCacheRef::sealed_before
      const int old = position - origin + 1 - r.shape.tail.min_tokens;
      const int whole = old <= 0 ? 0 : (granule == 64 ? old & ~63 : old / granule * granule);
      return origin + whole > exact_begin ? origin + whole : exact_begin;
    };
    const int unit = list * r.shape.units_per_row;
    // The first entry whose first token lies at `position`, where a block of the grid begins, or
    // later.
    const auto first_from = [&](int position) {
      if constexpr (evicts_tokens<typename Ref::policy>) {
        int e = entry_of(position > sealed_end ? position : sealed_end);
        // Past the first-level cache: an append may be writing beside what is read here.
        const auto first_of = [&](int entry) { return __ldcg(&r.first_position(i, unit, entry)); };
        while (position < sealed_end && e > 0 && first_of(e - 1) >= position) --e;
        return e;
      } else {
        return entry_of(position);
      }
    };
    const int sealed = sealed_before(oldest);
    const int seen = call.params.causal && oldest + 1 < sealed ? oldest + 1 : sealed;
    w.exact_first = first_from(sealed);
    w.decoded = w.rows == 1 ? w.exact_first : first_from(sealed_before(newest));
    w.plain_end = w.rows == 1 ? w.decoded : (seen >= sealed_end ? entry_of(seen) : 0);
    w.exact_blocks = count - w.exact_first;
    w.exact_in_order = w.rows == 1 && sealed >= sealed_end;
    const int block = newest_block - (w.exact_blocks - 1);
    w.exact_place = block > 0 ? block % r.shape.ring_blocks : 0;
  }
  w.exact_items = w.exact_blocks + (r.shape.tail.sink_tokens > 0 ? 1 : 0);
  w.places = w.decoded + w.exact_items * call.exact_places;
  if (w.places < 1) w.places = 1;
  return w;
}

/// A thread block's way along the line, list after list. Places are counted in 32 bits; the host
/// refuses calls that could have more.
struct Walk {
  int place = 0;  ///< next one
  int end = 0;
  int each = 0;  ///< places of a thread block: the first `longer` have one more
  int longer = 0;
  int empty = 0;            ///< empty places of a stretch
  int list = 0;             ///< part * lists + list
  bool knows_list = false;  ///< whether `work` is that of `list`
  int list_begin = 0;       ///< its first place
  int heads_before = 0;     ///< KV heads times tiles of earlier lists
  int rows_before = 0;      ///< query rows of earlier parts
  ListWork work{};

  [[nodiscard]] TERSE_HOST_DEVICE int first_place(int block) const {
    return each * block + (block < longer ? block : longer);
  }
  /// The thread block that has the place `at`.
  [[nodiscard]] TERSE_HOST_DEVICE int block_of(int at) const {
    const unsigned in_longer = static_cast<unsigned>(each + 1) * static_cast<unsigned>(longer);
    const auto p = static_cast<unsigned>(at);
    return p < in_longer ? static_cast<int>(p / static_cast<unsigned>(each + 1))
                         : longer + static_cast<int>((p - in_longer) / static_cast<unsigned>(each));
  }
};

struct WorkScratch {
  int places[32];
  int heads[32];
  int rows[32];
  int shortest[32];
  int longest[32];
};

/// A division of `heads` stretches of `places` places among `grid` thread blocks at whose borders
/// stretches begin or end.
struct EvenDivision {
  int each = 0;   ///< places of a thread block; 0: dividing the whole line equally takes less time
  int empty = 0;  ///< places at the begin of a stretch that hold nothing, fewer than `each`

  /// Stretches cost `segment_places` more than their places; a thread block has `least_each` places
  /// at least.
  [[nodiscard]] TERSE_HOST_DEVICE static EvenDivision find(int heads, int places,
                                                           int segment_places, int least_each,
                                                           int grid) {
    const auto larger = [](int a, int b) { return a > b ? a : b; };
    const int line = heads * (places + segment_places);
    const int equal = larger(ceil_div(line, grid), least_each) + segment_places;
    if (heads >= grid) {
      const int whole = ceil_div(heads, grid);
      if (whole * (places + segment_places) > equal) return {};
      return {whole * places, 0};
    }
    // A thread block stays free: what a launch behind begins in the place of one that merges is
    // late.
    const int wanted = larger(ceil_div(places, (grid - 1) / heads), least_each);
    const int share = wanted < places ? wanted : places;
    if (share + segment_places > equal) return {};
    return {share, ceil_div(places, share) * share - places};
  }
};

/// Sets `walk` (shared memory) to the calling thread block's share, of at least `LeastPlaces`
/// places, empty ones included, where there are as many. By all its threads, which meet at the end;
/// false where there is none.
template <int Threads, int LeastPlaces, class Ref>
[[nodiscard]] __device__ bool divide_work(const AttendCall<Ref>& call, int tile_vectors,
                                          WorkScratch& scratch, Walk& walk) {
  const int per_part = call.r.shape.rows;
  const int lists = call.num_parts * per_part;
  const int per_thread = ceil_div(lists, Threads);
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int first = thread * per_thread;
  const int last = first + per_thread < lists ? first + per_thread : lists;
  const int empty = call.segment_places;
  int places = 0, heads = 0, rows = 0;
  unsigned shortest = ~0u, longest = 0;  // stretches
  ListWork w;
#pragma unroll 1
  for (int i = first; i < last; ++i) {
    w = list_work(call, i, tile_vectors);
    places += (w.places + empty) * w.heads;
    heads += w.heads;
    if (w.heads > 0) {
      shortest = min(shortest, static_cast<unsigned>(w.places));
      longest = max(longest, static_cast<unsigned>(w.places));
    }
    if (per_part == 1 || i % per_part == per_part - 1) rows += w.rows;
  }
  int places_to = places, heads_to = heads, rows_to = rows;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int p = __shfl_up_sync(~0u, places_to, d);
    const int h = __shfl_up_sync(~0u, heads_to, d), q = __shfl_up_sync(~0u, rows_to, d);
    if (lane >= d) {
      places_to += p;
      heads_to += h;
      rows_to += q;
    }
  }
  shortest = __reduce_min_sync(~0u, shortest);
  longest = __reduce_max_sync(~0u, longest);
  if (lane == 31) {
    scratch.shortest[warp] = static_cast<int>(shortest);
    scratch.longest[warp] = static_cast<int>(longest);
    scratch.places[warp] = places_to;
    scratch.heads[warp] = heads_to;
    scratch.rows[warp] = rows_to;
  }
  __syncthreads();
  int total = 0, all_heads = 0, places_before = places_to - places;
  int heads_before = heads_to - heads, rows_before = rows_to - rows;
#pragma unroll
  for (int i = 0; i < Threads / 32; ++i) {
    if (i < warp) {
      places_before += scratch.places[i];
      heads_before += scratch.heads[i];
      rows_before += scratch.rows[i];
    }
    total += scratch.places[i];
    all_heads += scratch.heads[i];
    shortest = min(shortest, static_cast<unsigned>(scratch.shortest[i]));
    longest = max(longest, static_cast<unsigned>(scratch.longest[i]));
  }
  if (total == 0) return false;  // every part is left out
  Walk own;
  const int block = static_cast<int>(blockIdx.x), grid = static_cast<int>(gridDim.x);
  EvenDivision even;
  if (shortest == longest) {
    even = EvenDivision::find(all_heads, static_cast<int>(longest), empty, LeastPlaces, grid);
  }
  int blocks = min(ceil_div(total, LeastPlaces), grid);
  if (even.each > 0) {
    const int stretch = static_cast<int>(longest) + even.empty;
    total = all_heads * stretch;
    places = heads * stretch;
    places_before = heads_before * stretch;
    blocks = ceil_div(total, even.each);
    own.each = even.each;
    own.empty = even.empty;
  } else {
    own.each = total / blocks;
    own.longer = total - own.each * blocks;
    own.empty = empty;
  }
  own.place = block < blocks ? own.first_place(block) : total;
  own.end = min(block < blocks ? own.first_place(block + 1) : total, total);
  if (places_before <= own.place && own.place < places_before + places && own.place < own.end) {
    own.list = first;
    own.knows_list = per_thread == 1;
    own.list_begin = places_before;
    own.heads_before = heads_before;
    own.rows_before = rows_before;
    own.work = w;
    walk = own;
  }
  __syncthreads();
  return own.place < own.end;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
