/// Attention over a cache on the device, straight from the encoded blocks.
///
/// One launch of a fixed grid serves any lengths: who does what is decided on the device
/// (attend/work_division.cuh), so a captured graph may be replayed after the lengths have changed.
/// Codes are operands of the tensor cores as they are stored (attend/affine_keys.cuh). Latents have
/// kernels of their own (attend/latent_kernel.cuh), which take no HeadDims.
#pragma once

#include <cstddef>
#include <cuda_runtime_api.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/call.cuh"
#include "terse/cuda/attend/launch.cuh"
#include "terse/cuda/attend/launch_columns.cuh"
#include "terse/cuda/attend/launch_latents.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// Whether tensor-core kernels read the policy's codes as they are stored, for head dimension
/// `Width`, rather than through the codec's `decode`.
template <class Ref, int Width>
inline constexpr bool is_specialized = detail::reads_codes<Ref, Width> ||
                                       detail::reads_planes<Ref, Width>();

/// Names of the readers of keys and values that attend runs, for example
/// "affine_2_bit_per_channel" or "decode".
template <class Ref, int Width>
[[nodiscard]] constexpr const char* key_kernel_name() noexcept {
  return is_specialized<Ref, Width> ? detail::reader_name<typename Ref::policy::key_codec>()
                                    : "decode";
}
template <class Ref, int Width>
[[nodiscard]] constexpr const char* value_kernel_name() noexcept {
  return is_specialized<Ref, Width> ? detail::reader_name<typename Ref::policy::value_codec>()
                                    : "decode";
}

/// Bytes of the workspace of an attend call, exactly, on the current device.
template <class Ref>
[[nodiscard]] Expected<std::size_t> attend_workspace_bytes(const Ref& r,
                                                           const AttendInputs& in) noexcept {
  int multiprocessors = 0;
  if (Status s = detail::count_multiprocessors(&multiprocessors); !s.ok()) return s;
  return detail::workspace_of(r, in, max_blocks_per_multiprocessor * multiprocessors).bytes;
}

/// Makes fresh memory a workspace: its counters begin at zero and every call leaves them there.
[[nodiscard]] inline Status clear_workspace(Span<std::byte> workspace,
                                            cudaStream_t stream) noexcept {
  return to_status(cudaMemsetAsync(workspace.data(), 0, workspace.size(), stream),
                   "terse::cuda::clear_workspace: cudaMemsetAsync failed");
}

/// Column sums: probabilities that the tokens held here received under `lse_ln [row, query_head]`,
/// summed over the rows of a part and the query heads of a unit. `lse_ln` is what attend gave, or
/// the merged log-sum-exp of this cache and of whatever else the rows saw; rows with -inf saw
/// nothing. One launch that reads the keys again; no workspace, else as attend. Writes
/// `column_sums [part, unit, entry, 64]` (KVCache::column_sum_floats a part) for the entries in
/// use, of sequences that have not failed, of parts of at least one token. Within 2e-3 of exact
/// arithmetic, relative L2, and the same from run to run. unsupported: as attend, and distances in
/// the cache without a projector.
template <class Dims = AllHeadDims, class Ref>
Status sum_attention_columns(const Ref& r, const AttendInputs& in, const float* lse_ln,
                             float* column_sums, const AttendParams& params,
                             cudaStream_t stream) noexcept {
  if (Status s = detail::check_queries(r, in, params); !s.ok()) return s;
  if (lse_ln == nullptr || column_sums == nullptr) {
    return error(StatusCode::null_pointer,
                 "terse::cuda::sum_attention_columns: lse_ln or column_sums is null");
  }
  if constexpr (Ref::policy::projects) {
    return detail::columns_of_latents(r, in, lse_ln, column_sums, params, stream);
  } else if constexpr (detail::sums_columns<Ref>) {
    return detail::with_head_dim(Dims{}, r, params, [&]<int Dim>() {
      return detail::columns_of_width<Dim>(r, in, lse_ln, column_sums, params, stream);
    });
  } else {
    return detail::no_columns();
  }
}

/// Attention of the parts' query rows over everything their sequences hold, in the order of
/// `stream`: one launch, and one more for column sums; no allocation, no synchronisation,
/// capturable.
///
/// `r` is a view with device pointers (rebase, which leaves a projector's factors and calibrations:
/// they must be device memory too), and so are params.sink_logits. `workspace`:
/// attend_workspace_bytes, 128-byte aligned device memory, cleared once by clear_workspace for
/// caches of one head dimension or, with a projector, one rank of values; used by one call at a
/// time. Rows that see nothing give zeros and lse_ln = -inf. Outputs are within 2e-3 of exact
/// arithmetic on the decoded codes, relative L2 (docs/arithmetic.md), and the same from run to run.
/// unsupported: head dimensions that are not compiled, blocks or latents that do not fit the
/// device's shared memory, more than 2^31 blocks to visit.
template <class Dims = AllHeadDims, class Ref>
Status attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
              Span<std::byte> workspace, const AttendParams& params, cudaStream_t stream,
              const AttendLimits& limits = {}) noexcept {
  if (Status s = detail::check_attend(r, in, out, params, limits); !s.ok()) return s;
  if constexpr (Ref::policy::projects) {
    return detail::attend_latents(r, in, out, workspace, params, stream, limits);
  } else {
    const int tiles = detail::tiles_for(r.shape.head_dim, detail::most_vectors(r, in));
    return detail::with_head_dim(Dims{}, r, params, [&]<int Dim>() {
      Status status{};
      if constexpr (Dim <= 128) {
        status = tiles == 2
                     ? detail::attend_tiles<Dim, 2>(r, in, out, params, workspace, stream, limits)
                     : detail::attend_tiles<Dim, 1>(r, in, out, params, workspace, stream, limits);
      } else {
        status = detail::attend_tiles<Dim, 1>(r, in, out, params, workspace, stream, limits);
      }
      if constexpr (Ref::policy::signal == Signal::column_sum && detail::sums_columns<Ref>) {
        if (status.ok() && out.column_sums != nullptr) {
          status =
              detail::columns_of_width<Dim>(r, in, out.lse_ln, out.column_sums, params, stream);
        }
      }
      return status;
    });
  }
}

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
