/// What all parts of the attention kernel share: its sizes, its shared memory, the thread's place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_fp16.h>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/cuda/attend/plane_source.cuh"
#include "terse/cuda/attend/row_masks.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/softmax.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/tuning.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/calibration.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// The hardware whose code is being compiled: kernels for the other kind are empty.
__device__ constexpr Hardware compiled_hardware() {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
  return Hardware::hopper;
#else
  return Hardware::portable;
#endif
}

template <class Config>
struct KernelContext {
  using Ref = typename Config::Ref;
  using Policy = typename Ref::policy;
  using Source = SourceOf<Config, Segment>;
  using Keys = typename Source::Keys;
  using Values = typename Source::Values;
  using Order = typename Keys::Order;
  static constexpr bool turns_prefix = Policy::reindex == Reindex::cache_index;
  /// Products with stored keys lack a number for each query.
  static constexpr bool adds_offsets = HasQueryOffset<typename Policy::key_codec>;
  static constexpr int width = Config::width;
  static constexpr int tiles = Config::tiles;
  static constexpr int warps = Config::warps;
  static constexpr int threads = warps * 32;
  static constexpr int vectors = 8 * tiles;
  static constexpr int lane_channels = ceil_div(width, 32);
  static constexpr int own_vectors = ceil_div(vectors, warps);  ///< that a warp loads
  static constexpr int quads = width / 4;                       ///< of channels
  static constexpr int slots = threads / quads;                 ///< threads that share a quad
  static constexpr int query_stride = width + 8;

  static constexpr int exchange_bytes =
      warps * tiles * 1024 > vectors* width * 4 ? warps* tiles * 1024 : vectors* width * 4;

  struct Shared {
    alignas(128) std::byte source[Source::shared_bytes];
    union {
      alignas(128)
          std::byte exchange[exchange_bytes];  // [warp, tile, 1024] in read_sealed and read_prefix
      float result[vectors][width];            // in complete and store
    };
    alignas(128) __half ones[64];
    alignas(16) __half queries[vectors][query_stride];
    alignas(16) float sums[warps][vectors][width];
    float2 states[warps][vectors];
    float norms[vectors];
    float offsets[adds_offsets ? vectors : 1];  ///< in units of log2
    // What is the same for all threads lies here, not in their registers.
    WorkScratch work;
    Walk walk;
    Segment segments[3];  // the one being read, and two ahead
    bool has_segment;
    int is_last;
  };

  __device__ KernelContext(const AttendCall<Ref>& of_call, Shared& of_block)
      : call(of_call), shared(of_block) {}

  const AttendCall<Ref>& call;
  Shared& shared;
  Lane lane = this_lane();
  /// From one lane, so that the compiler knows it to be the same in all.
  int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) >> 5, 0);
  int quad = static_cast<int>(threadIdx.x) % quads;
  int slot = static_cast<int>(threadIdx.x) / quads;  ///< at least `slots` in threads left over
  float norm[tiles][2] = {};  ///< undoes the scaling of the queries, for the lane's columns

  [[nodiscard]] __device__ int group() const { return call.group; }
  /// What a codec knows of the streams of a unit, of which one has one of each side here.
  [[nodiscard]] __device__ __forceinline__ CodecContext context(Side side, int unit) const {
    CodecContext own = call.r.context(side, unit, 0);
    own.width = width;
    return own;
  }
  /// A logit of vector `v` after the soft cap.
  [[nodiscard]] __device__ __forceinline__ float capped(float x, int v) const {
    if constexpr (adds_offsets) x += shared.offsets[v];
    return soft_capped(x, call.params.logit_soft_cap);
  }
  /// What a log-sum-exp over the logits of vector `v` lacks (log2 units): a cap takes the offset
  /// in.
  [[nodiscard]] __device__ __forceinline__ float lse_offset(int v) const {
    if constexpr (adds_offsets) return call.params.logit_soft_cap > 0 ? 0.0f : shared.offsets[v];
    return 0.0f;
  }
  [[nodiscard]] __device__ __forceinline__ int row_of(const Segment& s, int v) const {
    return row_of_vector(call, s, v);
  }
  [[nodiscard]] __device__ __forceinline__ int head_of(const Segment& s, int v, int row) const {
    return head_of_vector(call, s, v, row);
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
