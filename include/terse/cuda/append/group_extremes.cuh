/// Extremes of a group of numbers, found by a warp: the same bits as one thread would find.
#pragma once

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// As C::find_extremes of `x [count]`, by `lanes` (a power of two) neighbouring lanes, each group
/// of them with numbers of its own. By all lanes of a warp.
template <class C>
[[nodiscard]] __device__ typename C::Extremes find_extremes_by_lanes(const float* x, int count,
                                                                     int lanes) {
  if (lanes == 1) return C::find_extremes(x, 1, count);
  // Of 32 numbers each lane has as many neighbours as there are groups in the warp: with rows one
  // apart from a multiple of the banks, no two lanes of a warp meet in one.
  const int lane = static_cast<int>(threadIdx.x) % lanes, run = 32 / lanes;
  const auto each = [&](auto&& f) {
    for (int from = lane * run; from < count; from += 32) {
      const int to = from + run < count ? from + run : count;
#pragma unroll 4
      for (int i = from; i < to; ++i) f(i);
    }
  };
  typename C::Extremes e;
  if constexpr (AffineFormat{C::affine_format}.has_min) {
    float low = x[0], high = x[0];
    each([&](int i) {
      low = fminf(low, x[i]);
      high = fmaxf(high, x[i]);
    });
    for (int d = 1; d < lanes; d *= 2) {
      low = fminf(low, __shfl_xor_sync(~0u, low, d));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
    }
    e = {low + 0.0f, high + 0.0f, 0.0f};
  } else {  // nothing but the peak is asked for
    float peak = 0.0f;
    each([&](int i) { peak = fmaxf(peak, fabsf(x[i])); });
    for (int d = 1; d < lanes; d *= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, d));
    e = {0.0f, peak, 0.0f};
  }
  if constexpr (C::needs_largest) {
    int first = count;
    each([&](int i) {
      if (first == count && !(absolute(x[i]) < e.peak())) first = i;
    });
    for (int d = 1; d < lanes; d *= 2) {
      const int other = __shfl_xor_sync(~0u, first, d);
      first = other < first ? other : first;
    }
    e.largest = x[first];
  }
  return e;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
