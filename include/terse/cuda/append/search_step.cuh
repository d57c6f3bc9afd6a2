/// The step of a group of numbers, found by neighbouring lanes: the same bits as one thread would
/// find.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Codecs that try several steps for a group.
template <class C>
inline constexpr bool searches_step = requires {
  requires C::searches_step;
};

/// Lanes of which each looks after one candidate, or none.
inline constexpr int candidate_lanes = 8;

/// The candidate of a lane, a step of 0 where it has none: all lanes divide for theirs at once.
template <class C>
[[nodiscard]] __device__ typename C::Step step_of_lane(float peak, int lane) {
  float own = 0.0f;
#pragma unroll
  for (int k = 0; k < C::num_steps; ++k) {
    const float divisor = C::candidate_divisor(peak, k);
    if (lane % candidate_lanes == k) own = divisor;
  }
  return C::make_step(own);
}

/// Partial fits of candidate steps to the numbers of `x [count]` that a lane of `Lanes` has: of 32
/// as many neighbours as there are groups in the warp, so that no two lanes meet in a bank where
/// the groups lie as find_extremes_by_lanes says.
template <class C, int Lanes, int At>
__device__ void fit_numbers_of_lane(const float* x, int count, const float (&inverses)[At],
                                    typename C::Fit* fits) {
  constexpr int run = C::num_partials / Lanes;
  typename C::template PartialFits<run, 1> partials[At];
  const auto add = [&](float v, int j) {
#pragma unroll
    for (int k = 0; k < At; ++k) C::add_to_fit(v, inverses[k], partials[k], j);
  };
  int i = static_cast<int>(threadIdx.x) % Lanes * run;
  for (; i + run <= count; i += C::num_partials) {
#pragma unroll
    for (int j = 0; j < run; ++j) add(x[i + j], j);
  }
#pragma unroll
  for (int j = 0; j < run - 1; ++j) {
    if (i + j < count) add(x[i + j], j);
  }
#pragma unroll
  for (int k = 0; k < At; ++k) fits[k] = C::sum_of(partials[k]);
}

/// Adds the fits of N candidates up over lanes, those `distance` apart first. Of two lanes each
/// gives half of them away, so that a lane is left with one: that of candidate lane / distance
/// modulo the power of two that holds N, no numbers where there is none. By all lanes of a warp.
template <class Fit, int N>
[[nodiscard]] __device__ Fit add_over_lanes(const Fit (&fits)[N], int lane, int distance) {
  if constexpr (N == 1) {
    return fits[0];
  } else {
    const bool keeps_second = lane / distance % 2 != 0;
    Fit sums[(N + 1) / 2];
#pragma unroll
    for (int i = 0; i < (N + 1) / 2; ++i) {
      const Fit first = fits[2 * i], second = 2 * i + 1 < N ? fits[2 * i + 1] : Fit{};
      const Fit kept = keeps_second ? second : first, given = keeps_second ? first : second;
      sums[i] = {kept.dot + __shfl_xor_sync(~0u, given.dot, distance),
                 kept.norm + __shfl_xor_sync(~0u, given.norm, distance)};
    }
    return add_over_lanes(sums, lane, 2 * distance);
  }
}

/// The first of the neighbouring lanes with candidates whose gain is the largest. By all lanes of a
/// warp.
[[nodiscard]] static __device__ int lane_of_largest(float gain) {
  float largest = gain;
#pragma unroll
  for (int d = 1; d < candidate_lanes; d *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
  }
  const unsigned first = threadIdx.x % 32 / candidate_lanes * candidate_lanes;
  return __ffs(static_cast<int>(__ballot_sync(~0u, gain == largest) >> first)) - 1;
}

/// As C::find_group of `x [count]` for a codec that searches its step, by `Lanes` neighbouring
/// lanes, each group of them with numbers of its own. By all lanes of a warp.
template <class C, int Lanes>
[[nodiscard]] __device__ typename C::Group search_group_by_lanes(const typename C::Extremes& e,
                                                                 const float* x, int count) {
  static_assert(C::num_steps > candidate_lanes / 2 && C::num_steps <= candidate_lanes);
  static_assert(Lanes >= candidate_lanes && C::num_partials % Lanes == 0);
  constexpr int at_once = 3;  // the sums of all take more registers, and the same time
  static_assert(C::num_steps % at_once == 0);
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const typename C::Step own = step_of_lane<C>(e.peak(), lane);
  typename C::Fit fits[C::num_steps];
#pragma unroll
  for (int first = 0; first < C::num_steps; first += at_once) {
    float inverses[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      inverses[k] = __shfl_sync(~0u, own.inverse, first + k, candidate_lanes);
    }
    fit_numbers_of_lane<C, Lanes>(x, count, inverses, fits + first);
  }
  typename C::Fit fit = add_over_lanes(fits, lane, 1);
#pragma unroll
  for (int d = candidate_lanes; d < Lanes; d *= 2) {
    fit.dot += __shfl_xor_sync(~0u, fit.dot, d);
    fit.norm += __shfl_xor_sync(~0u, fit.norm, d);
  }
  const int best = lane_of_largest(C::gain(fit));
  const unsigned factor = C::best_factor(fit, own).bits;
  typename C::Group g;
  g.step.divisor = __shfl_sync(~0u, own.divisor, best, candidate_lanes);
  g.step.inverse = __shfl_sync(~0u, own.inverse, best, candidate_lanes);
  g.scale = {static_cast<std::uint16_t>(__shfl_sync(~0u, factor, best, candidate_lanes))};
  return g;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
