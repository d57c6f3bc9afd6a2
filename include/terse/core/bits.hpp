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

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
