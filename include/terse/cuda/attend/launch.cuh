/// From a call to the launch of the attention kernel that serves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/attend_kernel.cuh"
#include "terse/cuda/attend/block_source.cuh"
#include "terse/cuda/attend/call.cuh"
#include "terse/cuda/attend/latent_memory.cuh"
#include "terse/cuda/launch.cuh"
#include "terse/cuda/tuning.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
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
  static constexpr bool reads_values = true;
};

template <class Ref, int Width, int Tiles, Hardware H>
consteval AttendTuning default_tuning() {
  using Policy = typename Ref::policy;
  if (reads_planes<Ref, Width>()) return {H == Hardware::hopper ? 8 : 4, 1, 1, false};
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

/// Partial results first, of a size that depends on device, projector and width of sums only, so
/// that calls of any shapes may take turns; then the counters.
template <class Ref>
[[nodiscard]] Workspace workspace_of(const Ref& r, const AttendInputs& in, int grid) noexcept {
  constexpr bool projects = Ref::policy::projects;
  constexpr std::size_t vectors = projects ? most_latent_vectors : 16, tile = 8;  // most, and least
  const std::size_t slots = static_cast<std::size_t>(2 * grid) * vectors;
  const auto rows = static_cast<std::size_t>(in.num_rows) *
                    static_cast<std::size_t>(r.shape.query_heads / r.shape.kv_heads);
  const std::size_t counters = (ceil_div(rows, tile) + static_cast<std::size_t>(in.num_parts)) *
                               static_cast<std::size_t>(r.shape.kv_heads);
  const int width = projects ? r.shape.value_width : r.shape.head_dim;
  Workspace w;
  w.states_offset = slots * static_cast<std::size_t>(width) * sizeof(float);
  w.counters_offset = w.states_offset + slots * sizeof(float2);
  w.bytes = w.counters_offset + counters * sizeof(unsigned);
  return w;
}

/// Gives a call its outputs and its workspace.
template <class Ref>
[[nodiscard]] Status bind_outputs(const AttendOutputs& out, Span<std::byte> workspace,
                                  int multiprocessors, const AttendInputs& in,
                                  AttendCall<Ref>* call) noexcept {
  const Workspace w = workspace_of(call->r, in, max_blocks_per_multiprocessor * multiprocessors);
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
  call->output = out.output;
  call->lse_ln = out.lse_ln;
  call->bytes_read = out.bytes_read;
  call->arrivals = reinterpret_cast<unsigned*>(workspace.data() + w.counters_offset);
  call->partial_sums = reinterpret_cast<float*>(workspace.data());
  call->partial_states = reinterpret_cast<float2*>(workspace.data() + w.states_offset);
  return {};
}

/// Thread blocks of a launch, of which `fit` run at once.
[[nodiscard]] inline int grid_within(const AttendLimits& limits, int fit) noexcept {
  return limits.thread_blocks > 0 && limits.thread_blocks < fit ? limits.thread_blocks : fit;
}

template <class Config>
[[nodiscard]] Status launch_attend(const typename Config::Ref& r, const AttendInputs& in,
                                   const AttendOutputs& out, const AttendParams& params,
                                   Span<std::byte> workspace, cudaStream_t stream,
                                   const AttendLimits& limits) noexcept {
  int multiprocessors = 0;
  if (Status s = count_multiprocessors(&multiprocessors); !s.ok()) return s;
  const int fit = multiprocessors * Config::blocks_per_multiprocessor;
  const int grid = grid_within(limits, fit);
  constexpr int bytes = static_cast<int>(sizeof(typename AttendKernel<Config>::Shared));
  AttendCall<typename Config::Ref> call = make_call(r, in, params);
  if (Status s = bind_outputs(out, workspace, multiprocessors, in, &call); !s.ok()) return s;
  if (Status s = to_status(cudaFuncSetAttribute(attend_kernel<Config>,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                           "terse::cuda::attend: the device lacks shared memory for this kernel");
      !s.ok()) {
    return s;
  }
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(grid)),
                           .threads = Config::warps * 32,
                           .shared_bytes = static_cast<std::size_t>(bytes),
                           .overlaps = Config::hardware == Hardware::hopper};
  return launch_kernel(launch, stream, "terse::cuda::attend: the launch failed",
                       attend_kernel<Config>, call);
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
  Hardware hardware{};
  if (Status s = find_hardware(attend_kernel<Any>, &hardware); !s.ok()) return s;
  return hardware == Hardware::hopper ? launch_fitting<Width, Tiles, Hardware::hopper>(
                                            r, in, out, params, workspace, stream, limits)
                                      : launch_fitting<Width, Tiles, Hardware::portable>(
                                            r, in, out, params, workspace, stream, limits);
}

/// Calls `f<Dim>()` with the view's head dimension, if it is among those that are compiled.
template <class Ref, int... Dims, class F>
[[nodiscard]] Status with_head_dim(HeadDims<Dims...>, const Ref& r, const AttendParams& params,
                                   F&& f) noexcept {
  Status status = error(StatusCode::unsupported,
                        "terse::cuda::attend: no kernel is compiled for this head dimension; "
                        "detail: it",
                        r.shape.head_dim);
  const auto try_dim = [&]<int Dim>() {
    if (r.shape.head_dim != Dim) return;
    if (params.require_specialized && !reads_codes<Ref, Dim> && !reads_planes<Ref, Dim>()) {
      status = error(StatusCode::unsupported,
                     "terse::cuda::attend: no specialised kernel reads this policy's codes at this "
                     "head dimension (docs/cuda.md says which are read); drop require_specialized");
      return;
    }
    status = f.template operator()<Dim>();
  };
  (try_dim.template operator()<Dims>(), ...);
  return status;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
