/// Launching of appends: checks that the host can make, the shape of the grid.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "terse/cache/append.hpp"
#include "terse/config.hpp"
#include "terse/core/status.hpp"
#include "terse/cuda/append/append_kernel.cuh"
#include "terse/cuda/device_ref.cuh"
#include "terse/cuda/launch.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Shared memory that every device has which terse's kernels run on.
inline constexpr std::size_t most_append_shared_bytes = 99 * 1024;

/// Most blocks of a part that thread blocks take side by side.
inline constexpr int most_parallel_blocks = 1024;

[[nodiscard]] inline Status check_device_input(const HeadRows& in, std::int64_t rows, int heads,
                                               int channels) noexcept {
  if (in.data == nullptr) {
    return error(StatusCode::null_pointer, "terse::cuda::KVCache::append: an input is null");
  }
  if (reinterpret_cast<std::uintptr_t>(in.data) %
          static_cast<std::uintptr_t>(scalar_bytes(in.scalar)) !=
      0) {
    return error(StatusCode::misaligned,
                 "terse::cuda::KVCache::append: an input is not aligned to its elements");
  }
  if ((heads > 1 && in.head_stride < channels) || (rows > 1 && in.row_stride < channels)) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::KVCache::append: a stride is smaller than a vector");
  }
  return {};
}

/// Whether blocks of this shape can be encoded on every device.
template <class Ref>
[[nodiscard]] Status check_append(const ClassShape& shape) noexcept {
  const std::size_t need = append_shared_bytes<Ref>(shape, block_tokens, most_append_threads);
  if (need <= most_append_shared_bytes) return {};
  return error(StatusCode::unsupported,
               "terse::cuda::KVCache: 64 tokens of a stream do not fit a thread block's shared "
               "memory; detail: bytes needed of 101376",
               static_cast<std::int64_t>(need));
}

/// Launches an append of `call.num_rows` rows in `call.num_parts` parts.
template <class Ref>
[[nodiscard]] Status append_on_device(AppendCall<Ref>& call, cudaStream_t stream) noexcept {
  const ClassShape& shape = call.r.shape;
  Status status = check_device_input(call.in.keys, call.num_rows,
                                     shape.unit.units * shape.unit.key_streams, shape.key_width);
  if (status.ok()) {
    status = check_device_input(call.in.values, call.num_rows,
                                shape.unit.units * shape.unit.value_streams, shape.value_width);
  }
  if constexpr (Ref::policy::signal == Signal::gate_logit) {
    if (status.ok()) {
      status = check_device_input(call.in.gate_logits, call.num_rows, shape.kv_heads, 1);
    }
  }
  if (!status.ok()) return status;
  call.aligned_keys = can_load_vectors(call.in.keys, shape.key_width);
  call.aligned_values = can_load_vectors(call.in.values, shape.value_width);
  const int blocks = std::min(most_step_blocks(shape, call.most_tokens), most_parallel_blocks);
  const dim3 grid(static_cast<unsigned>(call.num_parts) *
                      static_cast<unsigned>(shape.unit.units *
                                            (shape.unit.key_streams + shape.unit.value_streams)),
                  static_cast<unsigned>(blocks));
  // Few thread blocks leave the device to large ones.
  const bool is_small = grid.x * grid.y <= 264;
  const int threads = shape.open && call.most_tokens < 8 ? 128
                      : is_small                         ? most_append_threads
                                                         : 256;
  // The limit is the kernel's, not the launch's, so it is the same for all caches and threads.
  if (Status s = to_status(
          cudaFuncSetAttribute(append_kernel<Ref>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(most_append_shared_bytes)),
          "terse::cuda::KVCache::append: the program holds no code for this "
          "device");
      !s.ok()) {
    return s;
  }
  return launch_kernel({grid, threads, append_shared_bytes<Ref>(shape, call.most_tokens, threads)},
                       stream, "terse::cuda::KVCache::append: the launch failed",
                       append_kernel<Ref>, call);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
