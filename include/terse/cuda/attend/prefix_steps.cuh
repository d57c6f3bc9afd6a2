/// Steps by which queries turn for the tokens of an evictor's prefix.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/bits.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// As terse::detail::prefix_shift with Reindex::cache_index, by the lanes of a warp.
template <class Ref>
[[nodiscard]] __device__ int prefix_steps(const Ref& r, int sequence, int unit, int position) {
  int live = 0;
  const int count = r.entry_count(sequence, r.row_of_unit(unit));
  for (int e = static_cast<int>(threadIdx.x) % 32; e < count; e += 32) {
    live += count_ones(r.live_mask(sequence, unit, e) &
                       r.before(sequence, unit, e, std::int64_t{position} + 1));
  }
#pragma unroll
  for (int d = 1; d < 32; d *= 2) live += __shfl_xor_sync(~0u, live, d);
  return live - 1 - position;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
