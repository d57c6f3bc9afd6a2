/// How the attention kernel is shaped. Never changes results beyond rounding, nor stored bytes.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {

/// Shape of one instantiation of the attention kernel.
struct AttendTuning {
  int warps = 4;                      ///< per thread block: 4 or 8
  int blocks_per_multiprocessor = 2;  ///< thread blocks; the grid is this times multiprocessors
  int stages = 2;                     ///< places of a warp's ring
  bool splits_blocks = false;         ///< keys and values of a block take a place each
};

/// Upper bound of AttendTuning::blocks_per_multiprocessor, for workspaces.
inline constexpr int max_blocks_per_multiprocessor = 2;

/// Which of the two sets of tunings a kernel is compiled for.
enum class Hardware {
  portable,  ///< sm_80 to sm_89, sm_120 and newer: 99 KB of shared memory a thread block
  hopper,    ///< sm_90 to sm_119: 227 KB
};

namespace detail {

/// Shared memory that a thread block may have.
constexpr int most_shared_bytes(Hardware hardware) noexcept {
  return hardware == Hardware::portable ? 99 * 1024 : 227 * 1024;
}

/// Shared bytes of a thread block beside its rings: exchange, queries, sums, segments, barriers.
constexpr int fixed_bytes(int warps, int vectors, int width) noexcept {
  const int exchange = warps * vectors * 128, result = vectors * width * 4;
  return (exchange > result ? exchange : result) + vectors * (width + 8) * 2 +
         warps * vectors * (width * 4 + 8) + warps * 128 + 2048;
}

constexpr bool fits(const AttendTuning& t, Hardware hardware, int place_bytes, int vectors,
                    int width) noexcept {
  const int block = t.warps * t.stages * place_bytes + fixed_bytes(t.warps, vectors, width);
  if (hardware == Hardware::portable) return block <= most_shared_bytes(hardware);
  return t.blocks_per_multiprocessor * (block + 1024) <= 228 * 1024;
}

/// The default tuning for blocks of `key_bytes` and `value_bytes`: the first that fits.
constexpr AttendTuning choose_tuning(Hardware hardware, int key_bytes, int value_bytes, int vectors,
                                     int width) noexcept {
  constexpr AttendTuning wanted[] = {
      {4, 2, 3, false}, {4, 2, 2, false}, {4, 2, 3, true}, {4, 2, 2, true},
      {4, 1, 3, true},  {4, 1, 2, true},  {4, 1, 1, true},
  };
  const int both = key_bytes + value_bytes;
  const int larger = key_bytes > value_bytes ? key_bytes : value_bytes;
  for (AttendTuning t : wanted) {
    if (!fits(t, hardware, t.splits_blocks ? larger : both, vectors, width)) continue;
    if (hardware == Hardware::portable) t.blocks_per_multiprocessor = 1;
    return t;
  }
  return {4, 1, 1, true};
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
