/// Attention over a cache on the device, straight from the encoded blocks.
///
/// One launch of a fixed grid serves any lengths: who does what is decided on the device
/// (attend/work_division.cuh), so a captured graph may be replayed after the lengths have changed.
/// Codes are operands of the tensor cores as they are stored (attend/affine_keys.cuh).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/attend_kernel.cuh"
#include "terse/cuda/attend/block_source.cuh"
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
};

/// `[row, query_head, head_dim]` and `[row, query_head]` (or null), device memory.
struct AttendOutputs {
  MutableHeadRows output{};
  float* lse_ln = nullptr;
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

/// One instantiation of the kernel.
template <class R, int Width, int Tiles, Hardware H, AttendTuning Tuning>
struct AttendConfig {
  using Ref = R;
  static constexpr int width = Width;
  static constexpr int tiles = Tiles;
  static constexpr Hardware hardware = H;
  static constexpr int warps = Tuning.warps;
  static constexpr int stages = Tuning.stages;
  static constexpr bool splits_blocks = Tuning.splits_blocks;
  static constexpr int blocks_per_multiprocessor = Tuning.blocks_per_multiprocessor;
};

template <class Ref, int Width, int Tiles, Hardware H>
consteval AttendTuning default_tuning() {
  using Policy = typename Ref::policy;
  // Blocks that `decode` unpacks take one fp16 tile of keys or values a warp.
  if (!reads_codes<Ref, Width>) {
    return {4, 1, 1, false};
  }
  return choose_tuning(H, static_cast<int>(Policy::key_codec::record(Side::key, Width).bytes),
                       static_cast<int>(Policy::value_codec::record(Side::value, Width).bytes),
                       8 * Tiles, Width);
}

template <class Ref, int Width, int Tiles, Hardware H>
using DefaultConfig = AttendConfig<Ref, Width, Tiles, H, default_tuning<Ref, Width, Tiles, H>()>;

/// Tiles of eight query vectors that one pass over a unit's blocks serves.
[[nodiscard]] inline int tiles_for(int width, int vectors) noexcept {
  return vectors > 8 && width <= 128 ? 2 : 1;
}

template <class Ref>
[[nodiscard]] int most_vectors(const Ref& r, const AttendInputs& in) noexcept {
  const int group = r.shape.query_heads / r.shape.kv_heads;
  return in.num_rows > in.num_parts ? (in.num_rows - in.num_parts + 1) * group : group;
}

struct Workspace {
  std::size_t states_offset, counters_offset, bytes;
};

/// Partial results first, of a size that depends on device and head dimension only, so that calls
/// of any shapes may take turns; then the counters.
template <class Ref>
[[nodiscard]] Workspace workspace_of(const Ref& r, const AttendInputs& in, int grid) noexcept {
  constexpr std::size_t vectors = 16, tile = 8;  // at most, and at least
  const std::size_t slots = static_cast<std::size_t>(2 * grid) * vectors;
  const auto rows = static_cast<std::size_t>(in.num_rows) *
                    static_cast<std::size_t>(r.shape.query_heads / r.shape.kv_heads);
  const std::size_t counters = (ceil_div(rows, tile) + static_cast<std::size_t>(in.num_parts)) *
                               static_cast<std::size_t>(r.shape.unit.units);
  Workspace w;
  w.states_offset = slots * static_cast<std::size_t>(r.shape.head_dim) * sizeof(float);
  w.counters_offset = w.states_offset + slots * sizeof(float2);
  w.bytes = w.counters_offset + counters * sizeof(unsigned);
  return w;
}

/// Multiprocessors of the current device.
[[nodiscard]] inline Status count_multiprocessors(int* count) noexcept {
  int device = 0;
  if (Status s = to_status(cudaGetDevice(&device), "terse::cuda: no CUDA device"); !s.ok())
    return s;
  return to_status(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device),
                   "terse::cuda: the device's multiprocessors cannot be counted");
}

template <class Ref>
[[nodiscard]] Status check_attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
                                  const AttendParams& params, const AttendLimits& limits) noexcept {
  using Policy = typename Ref::policy;
  if (in.num_parts < 1 || in.num_parts > r.shape.sequences || in.num_rows < 1) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::attend: between 1 and max_sequences parts, and one row at least",
                 in.num_parts);
  }
  if (in.parts == nullptr || in.queries.data == nullptr || out.output.data == nullptr) {
    return error(StatusCode::null_pointer,
                 "terse::cuda::attend: parts, queries or output are null");
  }
  if (Status s = terse::detail::check_strides(in.queries.row_stride, in.queries.head_stride,
                                              in.num_rows, r.shape.query_heads, r.shape.head_dim);
      !s.ok()) {
    return s;
  }
  if (Status s = terse::detail::check_strides(out.output.row_stride, out.output.head_stride,
                                              in.num_rows, r.shape.query_heads, r.shape.head_dim);
      !s.ok()) {
    return s;
  }
  if (Policy::projects || Policy::reindex == Reindex::cache_index) {
    return error(StatusCode::unsupported,
                 "terse::cuda::attend: latents and cache-index positions are served on the host "
                 "only");
  }
  // Places of work_division.cuh, exact ones counted as if each took 64 of them.
  const std::uint64_t tiles =
      ceil_div(static_cast<std::uint64_t>(in.num_rows) *
                   static_cast<std::uint64_t>(r.shape.query_heads / r.shape.kv_heads),
               std::uint64_t{8}) +
      static_cast<std::uint64_t>(in.num_parts);
  if (!terse::detail::product_fits(
          0x7fffffff,
          {tiles, static_cast<std::uint64_t>(r.shape.unit.units),
           static_cast<std::uint64_t>(r.shape.entries + 64 * (r.shape.ring_blocks + 1))})) {
    return error(StatusCode::unsupported,
                 "terse::cuda::attend: one call would have more than 2^31 blocks to visit; call "
                 "with fewer rows at a time");
  }
  if (limits.thread_blocks < 0) {
    return error(StatusCode::invalid_argument, "terse::cuda::attend: a limit is negative",
                 limits.thread_blocks);
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

template <class Config>
[[nodiscard]] Status launch_attend(const typename Config::Ref& r, const AttendInputs& in,
                                   const AttendOutputs& out, const AttendParams& params,
                                   Span<std::byte> workspace, cudaStream_t stream,
                                   const AttendLimits& limits) noexcept {
  int multiprocessors = 0;
  if (Status s = count_multiprocessors(&multiprocessors); !s.ok()) return s;
  const int fit = multiprocessors * Config::blocks_per_multiprocessor;
  const int grid =
      limits.thread_blocks > 0 && limits.thread_blocks < fit ? limits.thread_blocks : fit;
  const Workspace w = workspace_of(r, in, max_blocks_per_multiprocessor * multiprocessors);
  if (workspace.data() == nullptr || workspace.size() < w.bytes) {
    return error(StatusCode::buffer_too_small,
                 "terse::cuda::attend: the workspace is smaller than attend_workspace_bytes; "
                 "detail: bytes needed",
                 static_cast<std::int64_t>(w.bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.data()) % 128 != 0) {
    return error(StatusCode::misaligned,
                 "terse::cuda::attend: the workspace must be 128-byte aligned");
  }
  constexpr int bytes = static_cast<int>(sizeof(typename AttendKernel<Config>::Shared));
  constexpr float log2e = 1.4426950408889634f;
  AttendCall<typename Config::Ref> call{};
  call.r = r;
  call.parts = in.parts;
  call.num_parts = in.num_parts;
  call.num_rows = in.num_rows;
  call.queries = in.queries;
  call.output = out.output;
  call.lse_ln = out.lse_ln;
  call.params = params;
  call.group = r.shape.query_heads / r.shape.kv_heads;
  call.scale = (params.softmax_scale > 0 ? params.softmax_scale
                                         : 1.0f / std::sqrt(static_cast<float>(r.shape.head_dim))) *
               log2e;
  call.exact_places =
      static_cast<int>((r.shape.tail_block_bytes + r.shape.unit_bytes / 2) / r.shape.unit_bytes);
  call.exact_places = clamp(call.exact_places, 1, 64);
  call.arrivals = reinterpret_cast<unsigned*>(workspace.data() + w.counters_offset);
  call.partial_sums = reinterpret_cast<float*>(workspace.data());
  call.partial_states = reinterpret_cast<float2*>(workspace.data() + w.states_offset);
  if (Status s = to_status(cudaFuncSetAttribute(attend_kernel<Config>,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                           "terse::cuda::attend: the device lacks shared memory for this kernel");
      !s.ok()) {
    return s;
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(grid));
  launch.blockDim = dim3(static_cast<unsigned>(Config::warps * 32));
  launch.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  launch.stream = stream;
  launch.attrs = &overlap;
  launch.numAttrs = Config::hardware == Hardware::hopper ? 1 : 0;
  return to_status(cudaLaunchKernelEx(&launch, attend_kernel<Config>, call),
                   "terse::cuda::attend: the launch failed");
}

/// Launches the widest kernel of a kind of hardware whose shared memory suffices.
template <int Width, int Tiles, Hardware H, class Ref>
[[nodiscard]] Status launch_fitting(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
                                    const AttendParams& params, Span<std::byte> workspace,
                                    cudaStream_t stream, const AttendLimits& limits) noexcept {
  using Config = DefaultConfig<Ref, Width, Tiles, H>;
  if constexpr (sizeof(typename AttendKernel<Config>::Shared) <= most_shared_bytes(H)) {
    return launch_attend<Config>(r, in, out, params, workspace, stream, limits);
  } else if constexpr (Tiles > 1) {
    return launch_fitting<Width, 1, H>(r, in, out, params, workspace, stream, limits);
  } else {
    return error(StatusCode::unsupported,
                 "terse::cuda::attend: blocks of this policy and head dimension do not fit this "
                 "device's shared memory; detail: the head dimension",
                 Width);
  }
}

/// Launches a kernel of the hardware whose code was loaded for this device.
template <int Width, int Tiles, class Ref>
[[nodiscard]] Status attend_tiles(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
                                  const AttendParams& params, Span<std::byte> workspace,
                                  cudaStream_t stream, const AttendLimits& limits) noexcept {
  using Any = DefaultConfig<Ref, Width, 1, Hardware::hopper>;
  cudaFuncAttributes attributes{};
  if (Status s = to_status(cudaFuncGetAttributes(&attributes, attend_kernel<Any>),
                           "terse::cuda::attend: the program holds no code for this device");
      !s.ok()) {
    return s;
  }
  return attributes.ptxVersion >= 90 && attributes.ptxVersion < 120
             ? launch_fitting<Width, Tiles, Hardware::hopper>(r, in, out, params, workspace, stream,
                                                              limits)
             : launch_fitting<Width, Tiles, Hardware::portable>(r, in, out, params, workspace,
                                                                stream, limits);
}

}  // namespace detail

/// Whether tensor-core kernels read the policy's codes as they are stored, for head dimension
/// `Width`, rather than through the codec's `decode`.
template <class Ref, int Width>
inline constexpr bool is_specialized = detail::reads_codes<Ref, Width>;

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

/// Attention of the parts' query rows over everything their sequences hold, in the order of
/// `stream`: one launch, no allocation, no synchronisation, capturable.
///
/// `r` is a view with device pointers (rebase), and so are params.sink_logits. `workspace`:
/// attend_workspace_bytes, 128-byte aligned device memory, cleared once by clear_workspace for
/// caches of one head dimension, used by one call at a time. Rows that see nothing give zeros and
/// lse_ln = -inf. Outputs are within 2e-3 of exact arithmetic on the decoded codes, relative L2
/// (docs/arithmetic.md), and the same from run to run.
template <class Dims = AllHeadDims, class Ref>
Status attend(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
              Span<std::byte> workspace, const AttendParams& params, cudaStream_t stream,
              const AttendLimits& limits = {}) noexcept {
  if (Status s = detail::check_attend(r, in, out, params, limits); !s.ok()) return s;
  const int tiles = detail::tiles_for(r.shape.head_dim, detail::most_vectors(r, in));
  Status status = error(StatusCode::unsupported,
                        "terse::cuda::attend: no kernel is compiled for this head dimension; "
                        "detail: it",
                        r.shape.head_dim);
  const auto try_dim = [&]<int Dim>() {
    if (r.shape.head_dim != Dim) return;
    if (params.require_specialized && !is_specialized<Ref, Dim>) {
      status = error(StatusCode::unsupported,
                     "terse::cuda::attend: no specialised kernel reads this policy's codes at this "
                     "head dimension (docs/cuda.md says which are read); drop require_specialized");
      return;
    }
    if constexpr (Dim <= 128) {
      if (tiles == 2) {
        status = detail::attend_tiles<Dim, 2>(r, in, out, params, workspace, stream, limits);
        return;
      }
    }
    status = detail::attend_tiles<Dim, 1>(r, in, out, params, workspace, stream, limits);
  };
  [&]<int... Dim>(HeadDims<Dim...>) { (try_dim.template operator()<Dim>(), ...); }
  (Dims{});
  return status;
}

}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
