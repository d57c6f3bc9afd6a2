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
#include "terse/cuda/tuning.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Most blocks of a part that thread blocks take side by side.
inline constexpr int most_parallel_blocks = 1024;

[[nodiscard]] inline Status check_device_input(const HeadRows& in, bool has_source_rows,
                                               std::int64_t rows, int heads,
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
  if (!terse::detail::has_input_strides(in, has_source_rows, rows, heads, channels)) {
    return error(StatusCode::invalid_argument,
                 "terse::cuda::KVCache::append: a stride is smaller than a vector");
  }
  return {};
}

inline constexpr const char* wide_streams =
    "terse::cuda::KVCache: 64 tokens of a stream do not fit a thread block's shared memory; "
    "detail: "
    "bytes needed";

/// Streams of all units, each of which has thread blocks of its own.
[[nodiscard]] inline std::int64_t append_items(const UnitShape& unit) noexcept {
  return std::int64_t{unit.units} * (unit.key_streams + unit.value_streams);
}

/// Whether blocks of this shape can be encoded on some device.
template <class Ref>
[[nodiscard]] Status check_append(const ClassShape& shape) noexcept {
  constexpr std::int64_t most_items = 65535;  // a grid's second dimension
  if (append_items(shape.unit) > most_items) {
    return error(StatusCode::unsupported,
                 "terse::cuda::KVCache: a layer has more than 65535 streams of keys and values; "
                 "detail: their number",
                 append_items(shape.unit));
  }
  const std::size_t need =
      append_shared_bytes<Ref>(shape, append_launch<Ref>(shape, block_tokens, false));
  if (need <= static_cast<std::size_t>(most_shared_bytes(Hardware::hopper))) return {};
  return error(StatusCode::unsupported, wide_streams, static_cast<std::int64_t>(need));
}

/// Lets the kernel have the device's shared memory, if `need` bytes are not more.
template <class Ref>
[[nodiscard]] Status allow_append(std::size_t need) noexcept {
  return allow_shared_bytes(append_kernel<Ref>, need, wide_streams,
                            "terse::cuda::KVCache: the program holds no code for this device");
}

/// Whether blocks of this shape can be encoded on the current device.
template <class Ref>
[[nodiscard]] Status check_append_here(const ClassShape& shape) noexcept {
  if (Status s = check_append<Ref>(shape); !s.ok()) return s;
  return allow_append<Ref>(
      append_shared_bytes<Ref>(shape, append_launch<Ref>(shape, block_tokens, false)));
}

/// Launches an append of `call.num_rows` rows in `call.num_parts` parts.
template <class Ref>
[[nodiscard]] Status append_on_device(AppendCall<Ref>& call, cudaStream_t stream) noexcept {
  const ClassShape& shape = call.r.shape;
  const bool gathers = !call.in.source_rows.empty();
  Status status = terse::detail::check_source_form(call.in, call.num_rows);
  if (status.ok()) {
    status = check_device_input(call.in.keys, gathers, call.num_rows,
                                shape.unit.units * shape.unit.key_streams, shape.key_width);
  }
  if (status.ok()) {
    status = check_device_input(call.in.values, gathers, call.num_rows,
                                shape.unit.units * shape.unit.value_streams, shape.value_width);
  }
  if constexpr (Ref::policy::signal == Signal::gate_logit) {
    if (status.ok()) {
      status = check_device_input(call.in.gate_logits, false, call.num_rows, shape.kv_heads, 1);
    }
  }
  if (!status.ok()) return status;
  call.aligned_keys = can_load_vectors(call.in.keys, shape.key_width);
  call.aligned_values = can_load_vectors(call.in.values, shape.value_width);
  const auto items = static_cast<int>(append_items(shape.unit));
  // Few thread blocks leave the device to large ones; with few tokens there is little to share.
  const bool is_small =
      std::int64_t{call.num_parts} * items * most_step_blocks(shape, call.most_tokens, 1) <= 264;
  call.launch = append_launch<Ref>(shape, call.most_tokens, is_small);
  const int blocks =
      std::min(most_step_blocks(shape, call.most_tokens, call.launch.pieces), most_parallel_blocks);
  const dim3 grid(static_cast<unsigned>(call.num_parts), static_cast<unsigned>(items),
                  static_cast<unsigned>(blocks));
  const bool is_step = call.most_tokens <= most_decoded_tokens;
  // A block in registers takes two threads a channel (PatchPlace).
  const bool is_wide = std::max(shape.key_width, shape.value_width) > 128;
  const int threads = is_small && !(shape.open && is_step) ? most_append_threads<Ref>
                      : is_step                            ? 128
                      : is_wide                            ? most_append_threads<Ref>
                                                           : 256;
  const std::size_t bytes = append_shared_bytes<Ref>(shape, call.launch);
  if (Status s = allow_append<Ref>(bytes); !s.ok()) return s;
  Hardware hardware{};
  if (Status s = find_hardware(append_kernel<Ref>, &hardware); !s.ok()) return s;
  const bool overlaps = hardware == Hardware::hopper;
  return launch_kernel({grid, threads, bytes, overlaps}, stream,
                       "terse::cuda::KVCache::append: the launch failed", append_kernel<Ref>, call);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
