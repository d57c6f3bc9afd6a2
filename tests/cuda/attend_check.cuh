/// Attention on the device against the fp64 oracle, for the tests of this folder.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/device_memory.cuh"
#include "support/catch.hpp"

namespace terse::tests {

/// Outputs of tensor cores: queries, probabilities and scaled queries are rounded to fp16.
inline constexpr double device_tolerance = 2e-3;

/// Up to three sequences of one layer, in steps of up to 128 tokens.
inline CacheConfig device_config(int query_heads, int kv_heads, int head_dim, int max_tokens) {
  return {.num_layers = 1,
          .num_query_heads = query_heads,
          .num_kv_heads = kv_heads,
          .head_dim = head_dim,
          .max_sequences = 3,
          .max_tokens = max_tokens,
          .max_step_tokens = 128};
}

inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = a[i] == b[i] ? 0.0 : std::fabs(double{a[i]} - b[i]);
    if (!(d <= most)) most = d;
  }
  return most;
}

template <class Dims, class Ref>
void check_against_oracle(const Ref& r, const Buffers& host, Span<const StepPart> parts,
                          const std::vector<float>& queries, const AttendParams& params = {}) {
  const Attended slow = run_attend(r, parts, queries, Path::oracle, params);
  REQUIRE(slow.status.ok());
  // With all thread blocks a small shape is one block a warp; with few, warps go round their rings,
  // windows and segments.
  for (const int thread_blocks : {0, 1, 5}) {
    const Attended fast =
        run_on_device<Dims>(r, host, parts, queries, params, {.thread_blocks = thread_blocks});
    INFO(fast.status.text << " " << fast.status.detail << ", thread blocks " << thread_blocks);
    REQUIRE(fast.status.ok());
    CHECK(relative_l2(fast.output, slow.output) < device_tolerance);
    CHECK(largest_difference(fast.lse_ln, slow.lse_ln) < 5e-3);
  }
}

template <class Dims, class D>
void check_rows(const D& d, SequenceId s, int rows, const AttendParams& params = {}) {
  INFO(rows << " rows of " << d.shape().query_heads << " over " << d.shape().kv_heads
            << " heads of " << d.shape().head_dim << ", length " << d.length(s));
  const StepPart part{s, rows};
  check_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                             query_rows(d.shape(), 5, d.length(s) - rows, rows), params);
}

}  // namespace terse::tests
