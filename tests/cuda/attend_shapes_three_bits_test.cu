#include "terse/terse.hpp"

namespace {

/// Keys per token, two groups of channels at head dimension 128 and one at 64.
using KeysOfTwoGroups = terse::KeyValue<
    terse::AffineGroup<terse::AffineSpec{.bits = 3, .group = 64}>,
    terse::AffineGroup<terse::AffineSpec{.bits = 3, .rule = terse::ScaleRule::least_squares}>>;
/// Keys with a scale per channel and block.
struct WideKeys {
  using key_codec = terse::AffineGroup<terse::AffineSpec{
      .bits = 3, .granularity = terse::Granularity::per_channel, .group = 64}>;
  using value_codec = terse::AffineGroup<terse::AffineSpec{.bits = 3}>;
  static constexpr terse::TailSpec tail{.min_tokens = 1};
};

}  // namespace

#define TERSE_TEST_POLICIES Kivi3, WideKeys, KeysOfTwoGroups
#include "cuda/attend_shapes.cuh"
