/// Bit counts of 64-bit masks, on both processors.
#pragma once

#include <bit>
#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

TERSE_HOST_DEVICE inline int count_ones(std::uint64_t mask) noexcept {
#if defined(__CUDA_ARCH__)
  return __popcll(mask);
#else
  return std::popcount(mask);
#endif
}

/// Index of the lowest set bit. Precondition: mask != 0.
TERSE_HOST_DEVICE inline int lowest_one(std::uint64_t mask) noexcept {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(mask)) - 1;
#else
  return std::countr_zero(mask);
#endif
}

/// `mask` without its `n` lowest set bits. Precondition: 0 <= n <= count_ones(mask).
TERSE_HOST_DEVICE inline std::uint64_t without_lowest(std::uint64_t mask, int n) noexcept {
  std::uint64_t kept = mask;
  for (unsigned width = 32, from = 0; width > 0; width /= 2) {
    // All of the next `width` bits go if not more than `n` of them are set.
    const std::uint64_t next = ((std::uint64_t{1} << width) - 1) << from;
    const int ones = count_ones(kept & next);
    if (ones > n) continue;
    n -= ones;
    kept &= ~next;
    from += width;
  }
  return n > 0 ? kept & (kept - 1) : kept;
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
