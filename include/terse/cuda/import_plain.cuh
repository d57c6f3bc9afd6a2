/// Import of tokens from an engine's plain pages on the device: terse/cache/import_plain.hpp there.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/import_plain.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// A thread block has one range. Grid: {range}.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    find_rows_kernel(const __grid_constant__ PlainPages pages, std::int64_t offset_unit,
                     const PageRange* ranges, std::int64_t* rows, std::int64_t num_rows) {
  __shared__ unsigned long long tokens_before;
  const auto thread = static_cast<int>(threadIdx.x), own = static_cast<int>(blockIdx.x);
  if (thread == 0) tokens_before = 0;
  __syncthreads();
  unsigned long long sum = 0;
  for (int i = thread; i < own; i += Threads) {
    if (ranges[i].tokens > 0) sum += static_cast<unsigned>(ranges[i].tokens);
  }
  if (sum > 0) atomicAdd(&tokens_before, sum);
  __syncthreads();
  const auto first = static_cast<std::int64_t>(tokens_before);
  const PageRange range = ranges[own];
  for (int t = thread; t < range.tokens && first + t < num_rows; t += Threads) {
    rows[first + t] = terse::detail::source_row_of(pages, offset_unit, range, t);
  }
  if (own + 1 < static_cast<int>(gridDim.x)) return;
  const std::int64_t end = first + (range.tokens > 0 ? range.tokens : 0);
  for (std::int64_t i = end + thread; i < num_rows; i += Threads) rows[i] = -1;
}

}  // namespace detail

/// As terse::find_source_rows, in the order of `stream`: one launch, no allocation, no
/// synchronisation, capturable. The table, `ranges [range]` and `source_rows` are device memory and
/// must stay until the stream has passed. A captured call has a fixed number of ranges: unused ones
/// have 0 tokens.
///
/// What the host's function refuses gets the row -1, with which append makes its sequence fail
/// (invalid_argument): a token whose page does not exist or is not in the table. Tokens for which
/// there are no rows are left out.
inline Status find_source_rows(const PlainPages& pages, const PageRange* ranges, int num_ranges,
                               Span<std::int64_t> source_rows, cudaStream_t stream) noexcept {
  if (Status s = pages.validate(1, 1); !s.ok()) return s;
  if (num_ranges < 0) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::find_source_rows: num_ranges is negative", num_ranges);
  }
  if ((ranges == nullptr && num_ranges > 0) ||
      (source_rows.data() == nullptr && !source_rows.empty())) {
    return error(StatusCode::null_pointer,
                 "terse::cuda::find_source_rows: ranges or source_rows are null");
  }
  if (source_rows.empty()) return {};
  if (num_ranges == 0) {
    return to_status(cudaMemsetAsync(source_rows.data(), 0xff,  // all are -1
                                     source_rows.size() * sizeof(std::int64_t), stream),
                     "terse::cuda::find_source_rows: the device cannot be written");
  }
  constexpr int threads = 128;
  return detail::launch_kernel({dim3(static_cast<unsigned>(num_ranges)), threads}, stream,
                               "terse::cuda::find_source_rows: the launch failed",
                               detail::find_rows_kernel<threads>, pages, pages.offset_unit(),
                               ranges, source_rows.data(),
                               static_cast<std::int64_t>(source_rows.size()));
}

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
