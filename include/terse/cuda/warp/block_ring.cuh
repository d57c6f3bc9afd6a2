/// A ring of shared-memory places into which one warp streams blocks from global memory.
///
/// On sm_90 the bulk copy engine fills a place and completes an mbarrier; before, the lanes issue
/// cp.async copies and count groups. Places are filled and read in turn.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <int Stages, int StageBytes>
class BlockRing {
 public:
  /// Shared memory behind the places: one mbarrier each.
  static constexpr int barrier_bytes = Stages * 8;

  /// By the whole warp, before the first fetch. `places`: 128-byte aligned, Stages * StageBytes.
  __device__ __forceinline__ void start(std::uint32_t places, std::uint32_t barriers, int lane) {
    places_ = places;
    barriers_ = barriers;
    lane_ = lane;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      for (int s = 0; s < Stages; ++s) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + 8u * s));
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
#endif
  }

  /// Blocks fetched and not yet released.
  [[nodiscard]] __device__ __forceinline__ int in_flight() const { return in_flight_; }

  /// Index of the place that the next wait waits for.
  [[nodiscard]] __device__ __forceinline__ int read_place() const { return read_place_; }

  /// Begins to copy `bytes` (a multiple of 16, at most StageBytes) into the next place, from where
  /// lane `holder` says. `visit(place)` runs in that lane.
  template <class Visit>
  __device__ __forceinline__ void fetch(const std::byte* from, int bytes, int holder,
                                        Visit&& visit) {
    const int s = fetch_place_;
    const std::uint32_t to = places_ + static_cast<std::uint32_t>(s * StageBytes);
    const auto source = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(from), holder);
    if (lane_ == holder) visit(s);
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    if (is_elected()) {
      const std::uint32_t barrier = barriers_ + 8u * static_cast<unsigned>(s);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(bytes)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
          "[%3];" ::"r"(to),
          "l"(source), "r"(bytes), "r"(barrier)
          : "memory");
    }
#else
    for (int i = lane_ * 16; i < bytes; i += 32 * 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(source + i)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    fetch_place_ = s + 1 == Stages ? 0 : s + 1;
    ++in_flight_;
  }

  /// Waits for the oldest block in flight and gives its shared address.
  __device__ __forceinline__ std::uint32_t wait() {
    const int s = read_place_;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{.reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra W;}" ::"r"(
            barriers_ + 8u * static_cast<unsigned>(s)),
        "r"(phase_)
        : "memory");
#else
    if (in_flight_ >= Stages) {
      asm volatile("cp.async.wait_group %0;" ::"n"(Stages - 1) : "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncwarp();
#endif
    return places_ + static_cast<std::uint32_t>(s * StageBytes);
  }

  /// The oldest block has been read by all lanes; its place may be filled again.
  __device__ __forceinline__ void release() {
    __syncwarp();
    --in_flight_;
    read_place_ = read_place_ + 1 == Stages ? 0 : read_place_ + 1;
    phase_ ^= read_place_ == 0 ? 1u : 0u;
  }

 private:
#if __CUDA_ARCH__ >= 900
  /// True in one lane of the warp, of which the compiler knows that it is alone: a bulk copy needs
  /// no loop over lanes then.
  [[nodiscard]] __device__ __forceinline__ static bool is_elected() {
    std::uint32_t elected;
    asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}"
                 : "=r"(elected));
    return elected != 0;
  }
#endif

  std::uint32_t places_ = 0, barriers_ = 0;
  int lane_ = 0;
  int in_flight_ = 0, fetch_place_ = 0, read_place_ = 0;
  unsigned phase_ = 0;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
