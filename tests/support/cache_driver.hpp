/// Drives a cache with numbers that depend on (seed, layer, position) only, so that the same text
/// can be appended in any chunks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "support/cache_fixture.hpp"
#include "support/random.hpp"

namespace terse::tests {

/// Rows of one part of a step.
struct TokenRows {
  std::vector<float> keys, values, gate_logits;
};

inline TokenRows token_rows(const ClassShape& shape, std::uint64_t seed, int layer,
                            std::int64_t position, int tokens) {
  TokenRows rows;
  for (int i = 0; i < tokens; ++i) {
    Random random(seed * 1000003 + static_cast<std::uint64_t>(layer) * 7919 +
                  static_cast<std::uint64_t>(position + i) * 104729);
    const auto add = [&](std::vector<float>& out, int count, float scale) {
      const auto x = random.normals(static_cast<std::size_t>(count), scale);
      out.insert(out.end(), x.begin(), x.end());
    };
    add(rows.keys, shape.unit.units * shape.unit.key_streams * shape.key_width, 1.0f);
    add(rows.values, shape.unit.units * shape.unit.value_streams * shape.value_width, 1.0f);
    add(rows.gate_logits, shape.kv_heads, 1.0f);
  }
  return rows;
}

inline AppendInputs append_inputs(const ClassShape& shape, const TokenRows& rows) {
  return {HeadRows::dense(rows.keys.data(), Scalar::f32, shape.unit.units * shape.unit.key_streams,
                          shape.key_width),
          HeadRows::dense(rows.values.data(), Scalar::f32,
                          shape.unit.units * shape.unit.value_streams, shape.value_width),
          HeadRows::dense(rows.gate_logits.data(), Scalar::f32, shape.kv_heads, 1)};
}

/// `[row, query_head, head_dim]` for the rows at `position` and later.
inline std::vector<float> query_rows(const ClassShape& shape, std::uint64_t seed,
                                     std::int64_t position, int tokens) {
  std::vector<float> out;
  for (int i = 0; i < tokens; ++i) {
    Random random(seed * 15485863 + static_cast<std::uint64_t>(position + i) * 32452843 + 17);
    const auto x = random.normals(static_cast<std::size_t>(shape.query_heads * shape.head_dim));
    out.insert(out.end(), x.begin(), x.end());
  }
  return out;
}

/// One policy class; every layer has a slot of its own.
template <Layout L, class P>
struct Driver : CacheFixture<L, P> {
  using Base = CacheFixture<L, P>;
  using Policy = PolicyOf<P>;
  using Base::cache;

  explicit Driver(const CacheConfig& c, const PolicyConfig<Policy>& p = {}) : Base(c, {p}) {}

  [[nodiscard]] const ClassShape& shape() const { return cache.memory_plan().classes[0].shape; }
  [[nodiscard]] SequenceId create() { return *cache.create_sequence(); }
  [[nodiscard]] std::int64_t length(SequenceId s) const { return *cache.length(s); }

  /// begin_step and append of all layers.
  Status begin(SequenceId s, int tokens, std::uint64_t seed = 1) {
    const StepPart part{s, tokens};
    const std::int64_t position = length(s);
    if (Status status = cache.begin_step({&part, 1}); !status.ok()) return status;
    for (int layer = 0; layer < this->config.num_layers; ++layer) {
      const TokenRows rows = token_rows(shape(), seed, layer, position, tokens);
      if (Status status = cache.append(layer, append_inputs(shape(), rows)); !status.ok()) {
        return status;
      }
    }
    return {};
  }
  Status step(SequenceId s, int tokens, std::uint64_t seed = 1) {
    if (Status status = begin(s, tokens, seed); !status.ok()) return status;
    return cache.commit_step();
  }
  /// Appends up to `end` tokens in steps of at most `chunk`.
  Status fill(SequenceId s, std::int64_t end, int chunk, std::uint64_t seed = 1) {
    while (length(s) < end) {
      const auto tokens = static_cast<int>(std::min<std::int64_t>(chunk, end - length(s)));
      if (Status status = step(s, tokens, seed); !status.ok()) return status;
    }
    return {};
  }
  /// Attention of the newest `rows` positions.
  [[nodiscard]] Attended attend(SequenceId s, int rows = 1, Path path = Path::vectorised,
                                const AttendParams& params = {}, bool want_sums = false,
                                int layer = 0) const {
    const StepPart part{s, rows};
    const auto r = cache.layer(layer);
    return run_attend(r, {&part, 1}, query_rows(shape(), 5, r.visible_tokens(s.index) - rows, rows),
                      path, params, want_sums);
  }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

/// Whether two attend calls gave the same bits.
inline bool same_bits(const Attended& a, const Attended& b) {
  return a.status.ok() && b.status.ok() && same_bits(a.output, b.output) &&
         same_bits(a.lse_ln, b.lse_ln) && same_bits(a.column_sums, b.column_sums);
}

}  // namespace terse::tests
