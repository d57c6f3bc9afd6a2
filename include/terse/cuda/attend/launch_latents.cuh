/// From a call to the launches of the kernels that attend to latents. A thread block's shared
/// memory holds 64 rebuilt keys of a head, the sums of 16 query vectors, and at least 32 channels
/// of 64 latents, all in fp32.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/call.cuh"
#include "terse/cuda/attend/columns_share.cuh"
#include "terse/cuda/attend/latent_columns.cuh"
#include "terse/cuda/attend/latent_kernel.cuh"
#include "terse/cuda/attend/latent_memory.cuh"
#include "terse/cuda/attend/launch.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

[[nodiscard]] inline Status no_latent_kernel() noexcept {
  return error(StatusCode::unsupported,
               "terse::cuda::attend: latents are read through `decode` only; drop "
               "require_specialized");
}

/// How a kernel over latents is to be launched on the current device.
struct LatentLaunch {
  LatentMemory memory{};
  int multiprocessors = 0;
  int fit = 0;  ///< thread blocks that run at once
  bool overlaps = false;
};

template <class Kernel, class Ref>
[[nodiscard]] Status prepare_latents(Kernel* kernel, const Ref& r, int vectors, LatentUse use,
                                     LatentLaunch* launch) noexcept {
  constexpr const char* too_much =
      "terse::cuda::attend: rebuilt keys of this head dimension and sums of latents of this rank "
      "do "
      "not fit this device's shared memory; detail: bytes needed";
  constexpr const char* no_code = "terse::cuda::attend: the program holds no code for this device";
  if (Status s = count_multiprocessors(&launch->multiprocessors); !s.ok()) return s;
  Hardware hardware{};
  if (Status s = find_hardware(kernel, &hardware); !s.ok()) return s;
  launch->overlaps = hardware == Hardware::hopper;
  // Fewer vectors before fewer channels: that many rebuildings of keys are shared no longer.
  Status status = error(StatusCode::unsupported, too_much);
  for (int channels = 128; channels >= 32 && status.code == StatusCode::unsupported;
       channels /= 2) {
    for (int v = vectors; v >= 16 && status.code == StatusCode::unsupported; v /= 2) {
      launch->memory = plan_latents<Ref>(r.shape, r.rope, v, channels, use);
      status = allow_shared_bytes(kernel, static_cast<std::size_t>(launch->memory.bytes), too_much,
                                  no_code);
    }
  }
  if (!status.ok()) return status;
  int each = 0;
  status =
      to_status(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                    &each, kernel, latent_threads, static_cast<std::size_t>(launch->memory.bytes)),
                no_code);
  launch->fit = clamp(each, 1, max_blocks_per_multiprocessor) * launch->multiprocessors;
  return status;
}

/// Vectors of a tile: few rows do not pay for the room of many.
template <class Ref>
[[nodiscard]] int latent_vectors(const Ref& r, const AttendInputs& in) noexcept {
  return most_vectors(r, in) > 16 ? most_latent_vectors : 16;
}

/// As sum_attention_columns, whose arguments were checked.
template <class Ref>
[[nodiscard]] Status columns_of_latents(const Ref& r, const AttendInputs& in, const float* lse_ln,
                                        float* column_sums, const AttendParams& params,
                                        cudaStream_t stream) noexcept {
  if (params.require_specialized) return no_latent_kernel();
  LatentLaunch l;
  if (Status s = prepare_latents(latent_columns_kernel<Ref>, r, latent_vectors(r, in),
                                 LatentUse::column_sums, &l);
      !s.ok()) {
    return s;
  }
  AttendCall<Ref> call = make_call(r, in, params);
  call.lse_ln = const_cast<float*>(lse_ln);  // only read
  const int units = in.num_parts * r.shape.unit.units;
  const LaunchShape launch{
      .grid = dim3(static_cast<unsigned>(units),
                   static_cast<unsigned>(column_runs(r.shape, units, l.fit, 1))),
      .threads = latent_threads,
      .shared_bytes = static_cast<std::size_t>(l.memory.bytes),
      .overlaps = l.overlaps};
  return launch_kernel(launch, stream, "terse::cuda::sum_attention_columns: the launch failed",
                       latent_columns_kernel<Ref>, call, l.memory, column_sums);
}

/// As attend, whose arguments were checked.
template <class Ref>
[[nodiscard]] Status attend_latents(const Ref& r, const AttendInputs& in, const AttendOutputs& out,
                                    Span<std::byte> workspace, const AttendParams& params,
                                    cudaStream_t stream, const AttendLimits& limits) noexcept {
  if (params.require_specialized) return no_latent_kernel();
  LatentLaunch l;
  if (Status s =
          prepare_latents(latent_kernel<Ref>, r, latent_vectors(r, in), LatentUse::attention, &l);
      !s.ok()) {
    return s;
  }
  AttendCall<Ref> call = make_call(r, in, params);
  if (Status s = bind_outputs(out, workspace, l.multiprocessors, in, &call); !s.ok()) return s;
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(grid_within(limits, l.fit))),
                           .threads = latent_threads,
                           .shared_bytes = static_cast<std::size_t>(l.memory.bytes),
                           .overlaps = l.overlaps};
  if (Status s = launch_kernel(launch, stream, "terse::cuda::attend: the launch failed",
                               latent_kernel<Ref>, call, l.memory);
      !s.ok() || out.column_sums == nullptr) {
    return s;
  }
  return columns_of_latents(r, in, out.lse_ln, out.column_sums, params, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
