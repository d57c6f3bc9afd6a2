/// Parameters of one group of numbers, found by a warp: the same bits as one thread would find.
#pragma once

#include <concepts>
#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Groups and codes can be computed apart, so that threads share both.
template <class C>
concept SplitsEncoding = AffineCodec<C> &&
    requires(const float* x, float v, const typename C::Extremes& extremes,
             const typename C::Step& step) {
  { C::find_extremes(x, std::size_t{1}, 1) } -> std::same_as<typename C::Extremes>;
  { C::find_group(extremes, x, std::size_t{1}, 1) } -> std::same_as<typename C::Group>;
  { C::code_of(v, step) } -> std::same_as<unsigned>;
};

/// Codecs that try several steps for a group.
template <class C>
inline constexpr bool searches_step = requires {
  requires C::searches_step;
};

/// Numbers that a warp looks at together, and floats of shared memory that it needs for them.
inline constexpr int searched_numbers = 32;
template <class C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr int warp_scratch_floats() noexcept {
  // Rows of terms are one apart from a multiple of the banks.
  if constexpr (searches_step<C>) return 2 * C::num_steps * (searched_numbers + 1);
  return 0;
}

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
  float low = x[0], high = x[0];
  each([&](int i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  });
  for (int d = 1; d < lanes; d *= 2) {
    low = fminf(low, __shfl_xor_sync(~0u, low, d));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
  }
  typename C::Extremes e{low + 0.0f, high + 0.0f, 0.0f};
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

/// As C::find_group for a codec that searches its step. Terms are computed side by side and added
/// in order, by a lane a sum. `scratch [warp, warp_scratch_floats]`.
template <class C>
[[nodiscard]] __device__ typename C::Group search_group_by_warp(const typename C::Extremes& e,
                                                                const float* x, int count,
                                                                float* scratch) {
  constexpr int steps = C::num_steps;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto* terms = reinterpret_cast<double*>(scratch) + warp * steps * (searched_numbers + 1);
  const auto add_terms = [&](int begin, int sums, double sum) {
    __syncwarp();
    const int n = count - begin < searched_numbers ? count - begin : searched_numbers;
    if (lane < sums) {
#pragma unroll 8
      for (int i = 0; i < n; ++i) sum += terms[lane * (searched_numbers + 1) + i];
    }
    __syncwarp();
    return sum;
  };
  typename C::Step step[steps];
#pragma unroll
  for (int k = 0; k < steps; ++k) step[k] = C::candidate_step(e.peak(), k);
  typename C::Group g;
  if (step[0].divisor == 0.0f) return g;
  double sum = 0.0;
  for (int begin = 0; begin < count; begin += searched_numbers) {
    if (begin + lane < count) {
      const float v = x[begin + lane];
#pragma unroll
      for (int k = 0; k < steps; ++k) {
        terms[k * (searched_numbers + 1) + lane] = C::squared_error(v, step[k]);
      }
    }
    sum = add_terms(begin, steps, sum);
  }
  double errors[steps];
#pragma unroll
  for (int k = 0; k < steps; ++k) errors[k] = __shfl_sync(~0u, sum, k);
  g.step = C::candidate_step(e.peak(), C::best_step(errors));
  sum = 0.0;
  for (int begin = 0; begin < count; begin += searched_numbers) {
    if (begin + lane < count) {
      const float v = x[begin + lane], level = C::level_of(v, g.step);
      terms[lane] = static_cast<double>(v) * level;
      terms[searched_numbers + 1 + lane] = static_cast<double>(level) * level;
    }
    sum = add_terms(begin, 2, sum);
  }
  g.scale = C::best_factor(g.step.divisor, __shfl_sync(~0u, sum, 0), __shfl_sync(~0u, sum, 1));
  return g;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
