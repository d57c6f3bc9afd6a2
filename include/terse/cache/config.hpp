/// What a cache is told at creation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "terse/config.hpp"
#include "terse/core/rope.hpp"
#include "terse/core/span.hpp"
#include "terse/policy/calibration.hpp"
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
  /// Most tokens stored per sequence and slot. Lists of blocks have room for this many, rounded up
  /// to blocks, and one block more, which a sequence that was truncated may need.
  int max_tokens = 0;
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
  /// Room in the tail for codes of its complete blocks, so that encode_ahead may encode them before
  /// they are due: for each of its blocks the codes of one more, and a mark for each stream.
  /// invalid_argument where no block is complete before it is due.
  bool encodes_ahead = false;
  /// Pool size of paged layouts; 0: as many as all lists of blocks together can name.
  std::int64_t num_pages = 0;
  /// Paged layouts: no page is the cache's at first. The engine lends page ids and takes free ones
  /// back (KVCache::lend_pages, take_back_pages), so that one allocator serves all it keeps.
  bool borrows_pages = false;
  /// `[slot]`, for policies with a projector. Copied; the factors themselves stay the caller's.
  Span<const ProjectionFactors> factors{};
  /// For policies with a codec that uses calibration, all of which also do without. The slots are
  /// copied; their numbers stay the caller's, device memory for a cache on the device.
  CalibrationView calibration{};
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
