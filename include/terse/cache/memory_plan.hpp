/// Exact sizes, computed from the codecs' records.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

inline constexpr int max_policy_classes = 8;

/// Storage of one policy class.
struct ClassPlan {
  ClassShape shape{};
  double bits_per_element = 0;  ///< sealed blocks, metadata and padding included
  std::size_t pages_bytes = 0;  ///< whole pool
  std::size_t tails_bytes = 0;  ///< exact tokens of all sequences
  std::size_t state_bytes = 0;  ///< tables, masks, positions, evictor state, pool, scratch
};

/// Sizes of the three buffers of a cache.
struct MemoryPlan {
  std::size_t pages_bytes = 0;
  std::size_t tails_bytes = 0;
  std::size_t state_bytes = 0;
  int num_classes = 0;
  ClassPlan classes[max_policy_classes]{};
};

/// What a cache holds now.
struct MemoryUsage {
  std::int64_t pages_held = 0;  ///< pages with at least one owner
  std::int64_t pages_free = 0;  ///< of those lent, where the caller lends pages
  std::size_t page_bytes_held = 0;
  std::size_t tail_bytes = 0;      ///< all tails, used or not
  std::size_t state_bytes = 0;     ///< all tables
  std::int64_t stored_tokens = 0;  ///< tokens of living sequences, over slots and units
  std::int64_t live_tokens = 0;    ///< of these, not evicted
  [[nodiscard]] std::size_t total_bytes() const noexcept {
    return page_bytes_held + tail_bytes + state_bytes;
  }
};

/// What compact() would do to a sequence.
struct CompactPlan {
  std::int64_t pages_needed = 0;      ///< free pages required while it runs
  std::int64_t pages_returned = 0;    ///< net gain of the pool
  std::int64_t tokens_moved = 0;      ///< over slots and units
  std::int64_t tokens_reencoded = 0;  ///< of these, quantised a second time

  CompactPlan& operator+=(const CompactPlan& other) noexcept {
    pages_needed += other.pages_needed;
    pages_returned += other.pages_returned;
    tokens_moved += other.tokens_moved;
    tokens_reencoded += other.tokens_reencoded;
    return *this;
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
