/// A sequence of one head in which one decoded token has all the probability, and whose numbers err
/// by as much as planes may: their last bits are zeros, queries and keys have the same signs.
#pragma once

#include <cmath>
#include <vector>

#include "support/cache_driver.hpp"

namespace terse::tests {

struct DominantToken {
  static constexpr int width = 128, tokens = 128, token = 17;
  std::vector<float> query;
  TokenRows rows;

  DominantToken() : query(width) {
    Random random(3);
    for (int c = 0; c < width; ++c) {
      const float sign = random.below(2) == 0 ? 1.0f : -1.0f;
      query[static_cast<std::size_t>(c)] = sign * std::ldexp(4.0f, -(c / 2 % 6));
    }
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < width; ++c) {
        const float sign = query[static_cast<std::size_t>(c)] > 0 ? 1.0f : -1.0f;
        const float size = 0.5f + 0.125f * static_cast<float>(random.below(4));
        rows.keys.push_back(t == token ? sign * size : -0.9f * sign);
        rows.values.push_back(t == token ? size : 0.9f);
      }
    }
    rows.gate_logits.assign(tokens, 0.0f);
  }

  static CacheConfig config() {
    return {.num_layers = 1,
            .num_query_heads = 1,
            .num_kv_heads = 1,
            .head_dim = width,
            .max_sequences = 1,
            .max_tokens = tokens,
            .max_step_tokens = tokens};
  }
  /// Appends all tokens: those of the first block are decoded.
  template <class D>
  [[nodiscard]] Status fill(D& d, SequenceId s) const {
    const StepPart part{s, tokens};
    if (Status status = d.cache.begin_step({&part, 1}); !status.ok()) return status;
    if (Status status = d.cache.append(0, append_inputs(d.shape(), rows)); !status.ok()) {
      return status;
    }
    return d.cache.commit_step();
  }
};

}  // namespace terse::tests
