/// How many planes of each run attention reads under PlaneRule::tolerance: decided for a block of
/// 64 tokens at a time from the runs' units, the queries and, for values, the probabilities.
///
/// The idea, precision by what a term weighs in the sum, is AlignedKV's (arXiv 2409.16546). Theirs
/// compares exponents and is bounded by no tolerance (plane_exponents.hpp); here errors are added
/// up.
#pragma once

#include <cstdint>

#include "terse/config.hpp"
#include "terse/quant/planes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// plane_error of every number of planes, as constants.
struct PlaneErrors {
  float of[4];
};
template <PlaneCodec C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr PlaneErrors plane_errors() noexcept {
  PlaneErrors errors{};
  for (int p = 0; p <= C::num_planes; ++p) errors.of[p] = C::plane_error(p);
  return errors;
}

/// Fewest planes with which a run's error is at most `limit`. `weight`: what its numbers are
/// multiplied by at most, times its run_unit.
template <PlaneCodec C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr int planes_within(float weight, float limit) noexcept {
  constexpr PlaneErrors errors = plane_errors<C>();
  int planes = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int p = 0; p < C::num_planes; ++p) planes += weight * errors.of[p] > limit ? 1 : 0;
  return planes;
}

/// Errors that planes_within leaves, for the planes that it gives.
template <PlaneCodec C>
[[nodiscard]] TERSE_HOST_DEVICE constexpr float error_within(float weight, float limit) noexcept {
  constexpr PlaneErrors errors = plane_errors<C>();
  float error = 0.0f;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int p = C::num_planes - 1; p >= 0; --p) {
    error = weight * errors.of[p] > limit ? error : weight * errors.of[p];
  }
  return error;
}

/// Keys. The error of a logit is at most the sum over channels of |query| * run_unit *
/// plane_error(planes). Every channel may have an even share of the tolerance; it gets the largest
/// of a few multiples of that with which the sum stays below the tolerance all the same.
inline constexpr int num_key_shares = 3;
[[nodiscard]] TERSE_HOST_DEVICE constexpr int key_share_times(int i) noexcept { return 4 >> i; }

/// The share of the tolerance for channels of `weights [count]`: the largest of |query| * run_unit
/// over the query vectors and the channels that are read together.
template <PlaneCodec C>
[[nodiscard]] float key_share(const float* weights, int count, float tolerance) noexcept {
  const float even = tolerance / static_cast<float>(count);
  for (int i = 0; i + 1 < num_key_shares; ++i) {
    const float share = even * static_cast<float>(key_share_times(i));
    float sum = 0.0f;
    for (int c = 0; c < count; ++c) sum += error_within<C>(weights[c], share);
    if (sum <= tolerance) return share;
  }
  return even;
}

/// Values. A token with probability p may add `tolerance / 2 * peak * (p + 1 / tokens)` to the
/// error of an output: over all tokens, of which there are at most `tokens`, that makes `tolerance
/// * peak`. `probability`: the largest over the query vectors, or more; `peak`: what the magnitudes
/// of the block's values are bounded by.
[[nodiscard]] TERSE_HOST_DEVICE constexpr float value_share(float probability, float tokens,
                                                            float peak, float tolerance) noexcept {
  return tolerance * 0.5f * peak * (probability + 1.0f / tokens);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
