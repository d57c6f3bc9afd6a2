/// The exact tokens of a segment, item by item: blocks of the tail, then the sinks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/attend/segment.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Items of a segment: `ListWork::exact_blocks` from exact_first on, then the sinks.
struct ExactItems {
  int first, end;
};

/// The items whose places lie in the segment, `exact_places` each.
[[nodiscard]] __device__ __forceinline__ ExactItems exact_items_of(const Segment& s,
                                                                   int exact_places) {
  if (s.end <= s.work.decoded) return {0, 0};
  const int first = ceil_div(max(s.begin - s.work.decoded, 0), exact_places);
  const int end = ceil_div(s.end - s.work.decoded, exact_places);
  return {first, min(end, s.work.exact_items)};
}

/// Where the exact copies of an item lie, or null where there are none.
template <class Ref>
[[nodiscard]] __device__ __forceinline__ const std::byte* exact_copies(const Ref& r,
                                                                       const Segment& s, int item) {
  const std::byte* tail = r.unit_tail(s.work.sequence, s.unit);
  const ClassShape& shape = r.shape;
  if (item >= s.work.exact_blocks) {
    return tail + static_cast<std::size_t>(shape.ring_blocks) * shape.tail_block_bytes;
  }
  int place = s.work.exact_place + item;
  if (!s.work.exact_in_order) {
    // An evictor may have taken out blocks between.
    const int first = r.first_position(s.work.sequence, s.unit, s.work.exact_first + item);
    if (first < s.work.origin) return nullptr;
    place = (first - s.work.origin) / block_tokens;
  }
  return tail + static_cast<std::size_t>(place % shape.ring_blocks) * shape.tail_block_bytes;
}

/// Sinks that one query row reads, whatever entries they belong to; `mask_of(entry)`: its RowMask.
template <class Ref, class MaskOf>
[[nodiscard]] __device__ __forceinline__ std::uint64_t sink_mask(const Ref& r, const Segment& s,
                                                                 MaskOf&& mask_of) {
  std::uint64_t sinks = 0;
  const int count = r.entry_count(s.work.sequence, s.list);
  for (int e = 0; e < count && e < r.shape.tail.sink_tokens; ++e) sinks |= mask_of(e).sinks;
  return sinks;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
