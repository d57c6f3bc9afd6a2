/// What the calls of attention on the device take, what can be wrong with it, and how it reaches
/// the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/device_ref.cuh"
#include "terse/cuda/tuning.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// As terse::AttendInputs, on the device. The query rows of part i are the newest
/// `parts[i].tokens` positions of its sequence; a part of 0 tokens is left out.
struct AttendInputs {
  const StepPart* parts = nullptr;  ///< `[part]`, device memory
  int num_parts = 0;
  /// At least the sum of the parts' tokens; parts beyond it are left out.
  int num_rows = 0;
  HeadRows queries{};  ///< `[row, query_head, head_dim]`, device memory
  /// Of attend: no kernel that may still run when this one begins writes parts, or of their
  /// sequences' tables and blocks anything but what append writes. That holds where append of the
  /// same step lies between begin_step and this call. The work is then divided, and the first
  /// blocks are fetched, those that append may write into the second-level cache only, while that
  /// kernel ends; rows of a sequence that it makes fail mean nothing.
  bool lengths_are_settled = false;
};

/// As terse::AttendOutputs, in device memory.
struct AttendOutputs {
  MutableHeadRows output{};  ///< `[row, query_head, head_dim]`; value_rank with latent_output
  float* lse_ln = nullptr;   ///< `[row, query_head]` or null
  /// `[part, unit, entry, 64]` or null: see sum_attention_columns. Needs lse_ln; and a policy whose
  /// evictor takes column sums, so that the others need not compile their kernels.
  float* column_sums = nullptr;
  /// `[part, unit]` or null: what the call reads of encoded blocks is added here, once for every 8
  /// query vectors of a unit (16, below 256 channels and for more than 8). Not counted: latents,
  /// and tokens of a prefix to which distances are those in the cache.
  BytesRead* bytes_read = nullptr;
};

/// What an attend call may take of the device. Results differ by rounding only.
struct AttendLimits {
  int thread_blocks = 0;  ///< most that work, to leave multiprocessors to others; 0: all that fit
};

/// Head dimensions for which kernels are compiled. Each one costs compile time.
template <int... Dims>
struct HeadDims {};
using AllHeadDims = HeadDims<64, 80, 96, 128, 256>;

namespace detail {

/// Multiprocessors of the current device.
[[nodiscard]] inline Status count_multiprocessors(int* count) noexcept {
  int device = 0;
  if (Status s = to_status(cudaGetDevice(&device), "terse::cuda: no CUDA device"); !s.ok())
    return s;
  return to_status(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device),
                   "terse::cuda: the device's multiprocessors cannot be counted");
}

/// What can be wrong with parts, queries and parameters.
template <class Ref>
[[nodiscard]] Status check_queries(const Ref& r, const AttendInputs& in,
                                   const AttendParams& params) noexcept {
  using Policy = typename Ref::policy;
  if (in.num_parts < 1 || in.num_parts > r.shape.sequences || in.num_rows < 1) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::attend: between 1 and max_sequences parts, and one row at least",
                 in.num_parts);
  }
  if (in.parts == nullptr || in.queries.data == nullptr) {
    return error(StatusCode::null_pointer, "terse::cuda::attend: parts or queries are null");
  }
  if (Status s = terse::detail::check_strides(in.queries.row_stride, in.queries.head_stride,
                                              in.num_rows, r.shape.query_heads, r.shape.head_dim);
      !s.ok()) {
    return s;
  }
  if (params.latent_output && !Policy::projects) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::attend: latent_output needs a policy with a projector");
  }
  if (params.sliding_window_tokens > 0 && Policy::reindex == Reindex::cache_index) {
    return error(StatusCode::unsupported,
                 "terse::cuda::attend: a sliding window counts positions of the text, cache-index "
                 "positions do not; use the evictor's window");
  }
  // Places of work_division.cuh, exact items and what begins a stretch counted as 64 each.
  const std::uint64_t tiles =
      ceil_div(static_cast<std::uint64_t>(in.num_rows) *
                   static_cast<std::uint64_t>(r.shape.query_heads / r.shape.kv_heads),
               std::uint64_t{8}) +
      static_cast<std::uint64_t>(in.num_parts);
  if (!terse::detail::product_fits(
          0x7fffffff,
          {tiles, static_cast<std::uint64_t>(r.shape.kv_heads),
           static_cast<std::uint64_t>(r.shape.entries + 64 * (r.shape.ring_blocks + 2))})) {
    return error(StatusCode::unsupported,
                 "terse::cuda::attend: one call would have more than 2^31 blocks to visit; call "
                 "with fewer rows at a time");
  }
  if (Status s = terse::detail::check_planes<Policy>(params.planes); !s.ok()) return s;
  if (params.planes.rule == PlaneRule::exponents &&
      (PlaneCodec<typename Policy::key_codec> || PlaneCodec<typename Policy::value_codec>)) {
    return error(
        StatusCode::unsupported,
        "terse::cuda::attend: PlaneRule::exponents takes two passes over a sequence and is "
        "served on the host; use PlaneRule::tolerance");
  }
  const auto is_bad = [](float x) { return !(x >= 0.0f) || !is_finite(x); };
  if (is_bad(params.softmax_scale) || is_bad(params.logit_soft_cap) ||
      params.sliding_window_tokens < 0) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::attend: softmax_scale, logit_soft_cap and sliding_window_tokens "
                 "must be finite and not negative");
  }
  return {};
}

/// Whether the device computes column sums of a policy.
template <class Ref>
inline constexpr bool sums_columns =
    Ref::policy::projects || Ref::policy::reindex != Reindex::cache_index;

[[nodiscard]] inline Status no_columns() noexcept {
  return error(StatusCode::unsupported,
               "terse::cuda::attend: column sums under distances in the cache (cache-index "
               "positions) are served on the host only");
}

template <class Ref>
[[nodiscard]] Status check_attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
                                  const AttendParams& params, const AttendLimits& limits) noexcept {
  if (Status s = check_queries(r, in, params); !s.ok()) return s;
  if (out.output.data == nullptr) {
    return error(StatusCode::null_pointer, "terse::cuda::attend: the output is null");
  }
  if (Status s = terse::detail::check_strides(
          out.output.row_stride, out.output.head_stride, in.num_rows, r.shape.query_heads,
          params.latent_output ? r.shape.value_width : r.shape.head_dim);
      !s.ok()) {
    return s;
  }
  if (limits.thread_blocks < 0) {
    return error(StatusCode::invalid_argument, "terse::cuda::attend: a limit is negative",
                 limits.thread_blocks);
  }
  if (out.column_sums == nullptr) return {};
  if (Ref::policy::signal != Signal::column_sum) {
    return error(StatusCode::unsupported,
                 "terse::cuda::attend: the policy's evictor takes no column sums; "
                 "sum_attention_columns gives those of any policy");
  }
  if (!sums_columns<Ref>) return no_columns();
  if (out.lse_ln == nullptr) {
    return error(StatusCode::null_pointer,
                 "terse::cuda::attend: column sums are computed from lse_ln, which is null");
  }
  return {};
}

/// The part of a call that all its kernels share.
template <class Ref>
[[nodiscard]] AttendCall<Ref> make_call(const Ref& r, const AttendInputs& in,
                                        const AttendParams& params) noexcept {
  constexpr float log2e = 1.4426950408889634f;
  AttendCall<Ref> call{};
  call.r = r;
  call.parts = in.parts;
  call.num_parts = in.num_parts;
  call.num_rows = in.num_rows;
  call.queries = in.queries;
  call.params = params;
  call.lengths_are_settled = in.lengths_are_settled;
  call.group = r.shape.query_heads / r.shape.kv_heads;
  call.scale = (params.softmax_scale > 0 ? params.softmax_scale
                                         : 1.0f / std::sqrt(static_cast<float>(r.shape.head_dim))) *
               log2e;
  // As much longer as it takes to read them; the time of latents goes into rebuilding keys.
  call.exact_places =
      static_cast<int>((r.shape.tail_tokens_bytes() + r.shape.unit_bytes / 2) / r.shape.unit_bytes);
  call.exact_places = Ref::policy::projects ? 1 : clamp(call.exact_places, 1, 64);
  // To begin and end a stretch takes about as long as to read 128 KB (docs/cuda.md, What falls
  // short).
  call.segment_places =
      Ref::policy::projects ? 0 : clamp(static_cast<int>(131072 / r.shape.unit_bytes), 1, 32);
  return call;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
