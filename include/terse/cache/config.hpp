/// What a cache is told at creation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "terse/config.hpp"
#include "terse/core/rope.hpp"
#include "terse/core/span.hpp"
#include "terse/policy/projector.hpp"
#include "terse/policy/tail.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Names a sequence of a cache. Stale handles are recognised by their generation.
struct SequenceId {
  std::int32_t index = -1;
  std::uint32_t generation = 0;
  friend bool operator==(const SequenceId&, const SequenceId&) = default;
};

/// One sequence's share of a step or of an attend call.
struct StepPart {
  SequenceId sequence;
  int tokens = 1;
};

/// Where a layer's keys and values live. Layers with the same slot and class read the same blocks;
/// the first layer that appends in a step writes them.
struct LayerPlace {
  int slot = 0;
  int policy_class = 0;
};

/// Run-time shape of a cache, the same for all policy classes.
struct CacheConfig {
  int num_layers = 1;
  int num_query_heads = 1;
  int num_kv_heads = 1;
  int head_dim = 64;
  int max_sequences = 1;
  int max_tokens = 0;       ///< most tokens stored per sequence and slot, rounded up to blocks
  int max_step_tokens = 1;  ///< most tokens per sequence and step
  RopeSpec rope{};          ///< needed by StreamingLLM and by latents; otherwise unused
  /// `[layer]`; empty: layer i has slot i of class 0. Copied.
  Span<const LayerPlace> layers{};
};

/// Run-time fields of one policy class.
template <class Policy>
struct PolicyConfig {
  typename Policy::evictor::Params eviction{};
  std::optional<TailSpec> tail{};  ///< overrides Policy::tail
  std::int64_t num_pages = 0;      ///< pool size; 0: enough for every sequence at max_tokens
  /// `[slot]`, for policies with a projector. Copied; the factors themselves stay the caller's.
  Span<const ProjectionFactors> factors{};
};

/// Memory that the caller lends for the life of the cache. Everything that grows with tokens, and
/// every state of a sequence, lies here: a cache attached to a byte copy behaves identically.
struct Buffers {
  Span<std::byte> pages;  ///< encoded blocks, 128-byte aligned
  Span<std::byte> tails;  ///< exact tokens, 128-byte aligned
  Span<std::byte> state;  ///< tables, masks, positions, evictor state, pool; 128-byte aligned
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
