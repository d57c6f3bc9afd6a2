/// The stretches of KV heads that make up a thread block's share, found one after another.
#pragma once

#include "terse/config.hpp"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// One KV head's stretch of places in a thread block.
struct Segment {
  ListWork work{};
  int part = 0, list = 0, unit = 0;
  int kv_head = 0;                      ///< the unit, but for projectors, whose units have several
  int first_vector = 0, vectors = 0;    ///< of the tile
  int arrival = 0;                      ///< index of the head's counter, tile by tile
  std::int64_t row0 = 0;                ///< first query row of the part
  int begin = 0, end = 0;               ///< places of the head, without the empty ones
  int first_block = 0, last_block = 0;  ///< thread blocks that share the head
  bool is_last = false;                 ///< of the thread block's segments
};

/// Query row, inside its part, of vector `v` of a segment's tile.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ int row_of_vector(const AttendCall<Ref>& call,
                                                           const Segment& s, int v) {
  return s.work.rows == 1 ? 0 : (s.first_vector + v) / call.group;
}

/// Query head of vector `v` of a segment's tile, which is of query row `row` of the part.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ int head_of_vector(const AttendCall<Ref>& call,
                                                            const Segment& s, int v, int row) {
  return s.kv_head * call.group + s.first_vector + v - row * call.group;
}

/// The segment at walk.place or behind the empty places there; moves the walk behind it. False, and
/// the walk has ended, where only empty places are left; the segment before was the last then, for
/// they are taken from the walk's end with it. `vectors`: of a tile.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ bool next_segment(const AttendCall<Ref>& call, int vectors,
                                                           Walk& walk, Segment& out) {
  const int lists = call.r.shape.rows, place = walk.place;
  if (place >= walk.end) return false;
#pragma unroll 1
  for (;;) {
    if (!walk.knows_list) walk.work = list_work(call, walk.list, vectors);
    walk.knows_list = true;
    const int own = (walk.work.places + walk.empty) * walk.work.heads;
    if (place < walk.list_begin + own) break;
    walk.list_begin += own;
    walk.heads_before += walk.work.heads;
    if (lists == 1 || walk.list % lists == lists - 1) walk.rows_before += walk.work.rows;
    ++walk.list;
    walk.knows_list = false;
  }
  Segment s;
  s.work = walk.work;
  s.part = lists == 1 ? walk.list : walk.list / lists;
  s.list = walk.list - s.part * lists;
  const int inside = place - walk.list_begin;
  const int empty = walk.empty, stretch = s.work.places + empty;
  const int head_tile = inside / stretch;
  const int from = inside - head_tile * stretch, left = walk.end - place;
  const int to = left < stretch - from ? from + left : stretch;
  if (to <= empty) {
    walk.end = place;
    return false;
  }
  s.begin = from > empty ? from - empty : 0;
  s.end = to - empty;
  const int head = s.work.tiles == 1 ? head_tile : head_tile / s.work.tiles;
  s.kv_head = s.list * heads_per_list<Ref>(call.r.shape) + head;
  s.unit = s.kv_head;
  if constexpr (Ref::policy::projects) s.unit /= call.r.shape.unit.heads_per_unit;
  s.first_vector = (head_tile - head * s.work.tiles) * vectors;
  const int rest = s.work.rows * call.group - s.first_vector;
  s.vectors = rest < vectors ? rest : vectors;
  s.arrival = walk.heads_before + head_tile;
  s.row0 = walk.rows_before;
  if (s.row0 + s.work.rows > call.num_rows) s.vectors = 0;  // the caller has no place for them
  const int head_begin = place - from;
  const int block = static_cast<int>(blockIdx.x);
  s.first_block = s.begin == 0 ? block : walk.block_of(head_begin + empty);
  s.last_block = to == stretch ? block : walk.block_of(head_begin + stretch - 1);
  walk.place = place + (to - from);
  if (walk.end - walk.place <= empty) walk.end = walk.place;
  s.is_last = walk.place == walk.end;
  out = s;
  return true;
}

/// Tells that the calling thread block has left its share of a segment's head in memory; whether it
/// is the last of those that share it, and may read what all have left. `flag`: shared memory. By
/// all threads, which meet before and after.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ bool arrives_last(const AttendCall<Ref>& call,
                                                           const Segment& s, int* flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    // Releases, cumulatively, what the other threads wrote before the barrier.
    const unsigned before = arrive(call.arrivals + s.arrival);
    const bool last = before == static_cast<unsigned>(s.last_block - s.first_block);
    if (last) call.arrivals[s.arrival] = 0u;
    *flag = last ? 1 : 0;
  }
  __syncthreads();
  return *flag != 0;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
