/// Division by a number that all threads share.
#pragma once

#include <cuda_runtime.h>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// A shift where the number is a power of two, as most widths and counts are: a division is some
/// thirty instructions, which every thread of a short kernel would spend.
struct Divisor {
  int value;
  int shift;  ///< negative: none

  [[nodiscard]] static __device__ __forceinline__ Divisor of(int value) {
    return {value, (value & (value - 1)) == 0 ? 31 - __clz(value) : -1};
  }
  /// Of 0 <= a.
  [[nodiscard]] __device__ __forceinline__ int quotient(int a) const {
    return shift >= 0 ? a >> shift
                      : static_cast<int>(static_cast<unsigned>(a) / static_cast<unsigned>(value));
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
