/// From a call to the launch of the kernel that sums attention's columns.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/attend/call.cuh"
#include "terse/cuda/attend/columns_kernel.cuh"
#include "terse/cuda/launch.cuh"
#include "terse/cuda/tuning.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// One instantiation of the kernel: as AttendConfig, but values are not read.
template <class R, int Width, Hardware H>
struct ColumnsConfig {
  using Ref = R;
  static constexpr AttendTuning tuning =
      reads_codes<Ref, Width>
          ? choose_tuning(H,
                          static_cast<int>(Ref::policy::key_codec::record(Side::key, Width).bytes),
                          0, 8, Width)
          : AttendTuning{4, 1, 1, false};
  static constexpr int width = Width;
  static constexpr int tiles = 1;
  static constexpr Hardware hardware = H;
  static constexpr int warps = tuning.warps;
  static constexpr int stages = tuning.stages;
  static constexpr bool splits_blocks = false;
  static constexpr int blocks_per_multiprocessor = tuning.blocks_per_multiprocessor;
  static constexpr bool reads_values = false;
};

template <int Width, Hardware H, class Ref>
[[nodiscard]] Status launch_columns(const AttendCall<Ref>& call, float* column_sums,
                                    cudaStream_t stream) noexcept {
  using Config = ColumnsConfig<Ref, Width, H>;
  constexpr auto bytes = static_cast<int>(sizeof(typename ColumnsKernel<Config>::Shared));
  if constexpr (bytes > most_shared_bytes(H)) {
    return error(StatusCode::unsupported,
                 "terse::cuda::sum_attention_columns: blocks of this policy and head dimension do "
                 "not fit this device's shared memory; detail: the head dimension",
                 Width);
  } else {
    int multiprocessors = 0;
    if (Status s = count_multiprocessors(&multiprocessors); !s.ok()) return s;
    if (Status s = to_status(
            cudaFuncSetAttribute(columns_kernel<Config>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
            "terse::cuda::sum_attention_columns: the device lacks shared memory for this kernel");
        !s.ok()) {
      return s;
    }
    const ClassShape& shape = call.r.shape;
    const int units = call.num_parts * shape.unit.units;
    const int fit = multiprocessors * Config::blocks_per_multiprocessor;
    const int runs = column_runs(shape, units, fit, least_column_entries);
    const LaunchShape launch{
        .grid = dim3(static_cast<unsigned>(units), static_cast<unsigned>(runs)),
        .threads = Config::warps * 32,
        .shared_bytes = static_cast<std::size_t>(bytes),
        .overlaps = H == Hardware::hopper};
    return launch_kernel(launch, stream, "terse::cuda::sum_attention_columns: the launch failed",
                         columns_kernel<Config>, call, column_sums);
  }
}

template <int Width, class Ref>
[[nodiscard]] Status columns_of_width(const Ref& r, const AttendInputs& in, const float* lse_ln,
                                      float* column_sums, const AttendParams& params,
                                      cudaStream_t stream) noexcept {
  AttendCall<Ref> call = make_call(r, in, params);
  call.lse_ln = const_cast<float*>(lse_ln);  // only read
  Hardware hardware{};
  if (Status s =
          find_hardware(columns_kernel<ColumnsConfig<Ref, Width, Hardware::hopper>>, &hardware);
      !s.ok()) {
    return s;
  }
  return hardware == Hardware::hopper
             ? launch_columns<Width, Hardware::hopper>(call, column_sums, stream)
             : launch_columns<Width, Hardware::portable>(call, column_sums, stream);
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
