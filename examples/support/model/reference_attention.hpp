#pragma once

#include <span>
#include <vector>

#include "thread_pool.hpp"

namespace terse::examples {

struct AttentionShape {
  int query_heads;
  int kv_heads;
  int head_dim;
};

/// Causal attention in fp32 over keys and values rounded to fp16: what an exact 16-bit cache gives.
///
/// Logits are scaled by 1 / sqrt(head_dim). The result does not depend on the thread count.
/// \param q `[query, query head, channel]`; query i has position `first_position + i`
/// \param k, v `[token, KV head, channel]`; positions 0 to `first_position + queries - 1`
/// \return `[query, query head, channel]`
/// Throws std::invalid_argument where the sizes do not fit.
[[nodiscard]] std::vector<float> reference_attention(ThreadPool& pool, const AttentionShape& shape,
                                                     std::span<const float> q,
                                                     std::span<const float> k,
                                                     std::span<const float> v,
                                                     int first_position = 0);

}  // namespace terse::examples
