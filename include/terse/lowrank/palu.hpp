/// Palu: KV-Cache Compression with Low-Rank Projection (arXiv 2407.21118, sections 3.1 and 3.3):
/// the cache stores latents `h = A x` of the hidden state; keys are rebuilt as `B h` and rotated
/// inside attention, values are summed as latents and projected once per output.
///
/// Groups of KV heads share a latent: 1 is the paper's M-LRD, s its G-LRD, 0 (all heads) its J-LRD.
/// Factors are given by the caller (ProjectionFactors); the model owns `A x`.
#pragma once

#include "terse/config.hpp"
#include "terse/policy/position.hpp"
#include "terse/policy/projector.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct PaluSpec {
  int key_heads_per_group = 0;    ///< 0: all KV heads of the layer
  int value_heads_per_group = 0;  ///< 0: all KV heads of the layer
};

template <PaluSpec S>
struct Palu {
  static_assert(S.key_heads_per_group >= 0 && S.value_heads_per_group >= 0,
                "terse::Palu: a head group is negative; use 0 for all KV heads.");
  static constexpr int key_heads_per_group = S.key_heads_per_group;
  static constexpr int value_heads_per_group = S.value_heads_per_group;
};

using PaluPerHead = Palu<PaluSpec{.key_heads_per_group = 1, .value_heads_per_group = 1}>;
using PaluJoint = Palu<PaluSpec{}>;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
