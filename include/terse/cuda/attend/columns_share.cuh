/// What a thread block of the kernels that sum attention's columns has: one unit of one part, and a
/// run of its entries. Grid: {part, unit} x run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/work_division.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Runs of at least `least_entries` entries into which those of `units` units of all parts are
/// divided, for a device on which `fit` thread blocks run at once.
[[nodiscard]] inline int column_runs(const ClassShape& shape, int units, int fit,
                                     int least_entries) noexcept {
  return clamp(ceil_div(2 * fit, units), 1, ceil_div(shape.entries, least_entries));
}

/// The calling thread block's share: `begin` and `end` are entries. By one thread.
template <class Ref>
[[nodiscard]] __device__ Segment columns_share(const AttendCall<Ref>& call, int vectors,
                                               int least_entries) {
  const ClassShape& shape = call.r.shape;
  Segment s;
  s.part = static_cast<int>(blockIdx.x) / shape.unit.units;
  s.unit = static_cast<int>(blockIdx.x) % shape.unit.units;
  s.kv_head = s.unit * shape.unit.heads_per_unit;
  s.list = call.r.row_of_unit(s.unit);
  s.work = list_work(call, s.part * shape.rows + s.list, vectors);
  if (s.work.rows == 0) s.work.sequence = -1;
  for (int i = 0; i < s.part; ++i) s.row0 += max(call.parts[i].tokens, 0);
  if (s.row0 + s.work.rows > call.num_rows) s.work.tiles = 0;  // no lse_ln, so no sums
  const int entries = s.work.sequence < 0
                          ? 0
                          : clamp(call.r.entry_count(s.work.sequence, s.list), 0, shape.entries);
  const int share = ceil_div(entries, static_cast<int>(gridDim.y));
  const int each = share > least_entries ? share : least_entries;
  s.begin = min(static_cast<int>(blockIdx.y) * each, entries);
  s.end = min(s.begin + each, entries);
  return s;
}

/// Index of the first column sum of the segment's unit, `[part, unit, entry, 64]`.
[[nodiscard]] __device__ inline std::size_t columns_of_unit(const ClassShape& shape,
                                                            const Segment& s) {
  return (static_cast<std::size_t>(s.part) * static_cast<std::size_t>(shape.unit.units) +
          static_cast<std::size_t>(s.unit)) *
         static_cast<std::size_t>(shape.entries) * block_tokens;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
