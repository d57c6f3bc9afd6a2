/// The contract of a projector: latents of fewer channels stored instead of keys and values.
///
/// A projector is a type with
///
///   static constexpr int key_heads_per_group;     // KV heads that share one key latent
///   static constexpr int value_heads_per_group;   // KV heads that share one value latent
///
/// where 0 means: all KV heads of the layer. Latents are the input of append, keys are stored
/// before RoPE, and the factors that rebuild them belong to the caller (ProjectionFactors).
#pragma once

#include <concepts>
#include <numeric>

#include "terse/config.hpp"
#include "terse/core/status.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <class P>
concept Projector = requires {
  { P::key_heads_per_group } -> std::convertible_to<int>;
  { P::value_heads_per_group } -> std::convertible_to<int>;
};

/// Stores the vectors themselves, one stream per KV head and side.
struct NoProjection {
  static constexpr int key_heads_per_group = 1;
  static constexpr int value_heads_per_group = 1;
};

/// Up-projections of one slot, fp32, owned by the caller and read by attend.
struct ProjectionFactors {
  int key_rank = 0;                 ///< channels of a key latent
  int value_rank = 0;               ///< channels of a value latent
  const float* key_up = nullptr;    ///< `[kv_head, channel, key_rank]`: key = key_up * latent
  const float* value_up = nullptr;  ///< `[kv_head, channel, value_rank]`
};

/// How the KV heads of a slot fall into units and streams.
struct UnitShape {
  int units = 0;
  int heads_per_unit = 1;        ///< KV heads
  int key_heads_per_stream = 1;  ///< KV heads that share a key stream
  int value_heads_per_stream = 1;
  int key_streams = 1;  ///< per unit
  int value_streams = 1;
};

/// Divides KV heads into the smallest units closed under both groupings.
template <Projector P>
[[nodiscard]] constexpr Status divide_units(int kv_heads, UnitShape* shape) noexcept {
  const int k = P::key_heads_per_group == 0 ? kv_heads : P::key_heads_per_group;
  const int v = P::value_heads_per_group == 0 ? kv_heads : P::value_heads_per_group;
  const int heads = std::lcm(k, v);
  if (heads <= 0 || kv_heads % heads != 0) {
    return error(StatusCode::invalid_argument,
                 "terse::Projector: the head groups of keys and values must divide the KV heads",
                 kv_heads);
  }
  *shape = {kv_heads / heads, heads, k, v, heads / k, heads / v};
  return {};
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
