/// Export of what a cache on the device holds to an engine's plain pages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/export_plain.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/export/export_kernel.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// As terse::export_plain, the same bits, in the order of `stream`: one launch, no allocation, no
/// synchronisation, capturable.
///
/// `r` is a view with device pointers; `sequences [num_sequences]`, the table and the outputs are
/// device memory, which must stay until the stream has passed, keys and values aligned to their
/// elements. A captured call has a fixed number of sequences. What only the device can see it tells
/// in `out.tokens`, which must be given: a unit that cannot be exported gets minus a StatusCode
/// there, and nothing else of it is written. These are the host's errors, what a failed sequence
/// has failed with, and corrupt_data where a block lies in no page of the cache. Latents:
/// unsupported.
template <class Ref>
Status export_plain(const Ref& r, const SequenceId* sequences, int num_sequences,
                    const PlainPages& pages, const PlainOutputs& out,
                    cudaStream_t stream) noexcept {
  if (Status s = terse::detail::check_export(r, num_sequences, pages, out); !s.ok()) return s;
  if (sequences == nullptr || out.tokens == nullptr) {
    return error(StatusCode::null_pointer,
                 "terse::cuda::export_plain: sequences or tokens are null");
  }
  const auto is_aligned = [&](const void* tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor) %
               static_cast<std::uintptr_t>(scalar_bytes(pages.scalar)) ==
           0;
  };
  if (!is_aligned(out.keys) || !is_aligned(out.values)) {
    return error(StatusCode::misaligned,
                 "terse::cuda::export_plain: keys or values are not aligned to their elements");
  }
  if constexpr (Ref::policy::projects) {
    return error(StatusCode::unsupported,
                 "terse::cuda::export_plain: latents are rebuilt on the host only");
  } else {
    const std::size_t shared = detail::export_shared_bytes(r.shape);
    if (Status s = detail::allow_shared_bytes(
            detail::export_kernel<Ref>, shared,
            "terse::cuda::export_plain: 64 tokens of a stream do not fit a thread block's shared "
            "memory; detail: bytes",
            "terse::cuda::export_plain: the program holds no code for this device");
        !s.ok()) {
      return s;
    }
    // A thread block counts the tokens of its whole unit, so more of them would not be faster.
    constexpr int enough_blocks = 1024;
    const int items = num_sequences * r.shape.unit.units;
    const int runs = std::clamp(ceil_div(enough_blocks, items), 1, r.shape.entries);
    return detail::launch_kernel({dim3(static_cast<unsigned>(items), static_cast<unsigned>(runs)),
                                  detail::export_threads, shared},
                                 stream, "terse::cuda::export_plain: the launch failed",
                                 detail::export_kernel<Ref>,
                                 detail::ExportCall<Ref>{r, sequences, pages, out});
  }
}

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
