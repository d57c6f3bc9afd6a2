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

/// As the type stores them.
inline std::vector<float> rounded(std::vector<float> values, Scalar scalar) {
  for (float& x : values) {
    x = scalar == Scalar::f16 ? to_float(to_f16_saturating(x)) : to_float(to_bf16(x));
  }
  return values;
}

/// Queries and outputs of 16 bits, dense and not: outputs are those of fp32, rounded, bit for bit,
/// and nothing between them is written.
template <class Dims, class Ref>
void check_types_against_oracle(const Ref& r, const Buffers& host, Span<const StepPart> parts,
                                const std::vector<float>& queries,
                                const AttendParams& params = {}) {
  for (const Scalar scalar : {Scalar::f16, Scalar::bf16}) {
    const double half_unit = scalar == Scalar::f16 ? 0x1p-11 : 0x1p-8;  // of the last place
    const std::vector<float> own = rounded(queries, scalar);
    const Attended slow = run_attend(r, parts, own, Path::oracle, params);
    REQUIRE(slow.status.ok());
    const Attended wide = run_on_device<Dims>(r, host, parts, own, params);
    REQUIRE(wide.status.ok());
    for (const int gap : {0, 3}) {
      INFO("type " << static_cast<int>(scalar) << ", gap " << gap);
      DeviceCall<Ref> call(r, host, parts, own, params);
      const int rows = call.in.num_rows, heads = r.shape.query_heads;
      DeviceRows in(rows, heads, r.shape.head_dim, scalar, gap);
      const DeviceRows out(rows, heads, call.output_channels, scalar, gap);
      in.set(own);
      call.in.queries = in.read_only();
      call.output_rows = out.view();
      REQUIRE(call.template attend<Dims>({}).ok());
      const std::vector<float> output = out.values();
      CHECK(relative_l2(output, slow.output) < device_tolerance + half_unit);
      CHECK(same_bits(output, rounded(wide.output, scalar)));
      CHECK(same_bits(call.lse.template to_host<float>(), wide.lse_ln));
      CHECK(out.gaps_are_whole());
    }
  }
}

template <class Dims, class D>
void check_row_types(const D& d, SequenceId s, int rows, const AttendParams& params = {}) {
  INFO(rows << " rows, length " << d.length(s));
  const StepPart part{s, rows};
  check_types_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                                   query_rows(d.shape(), 5, d.length(s) - rows, rows), params);
}

template <class Dims, class D>
void check_rows(const D& d, SequenceId s, int rows, const AttendParams& params = {}) {
  INFO(rows << " rows of " << d.shape().query_heads << " over " << d.shape().kv_heads
            << " heads of " << d.shape().head_dim << ", length " << d.length(s));
  const StepPart part{s, rows};
  check_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                             query_rows(d.shape(), 5, d.length(s) - rows, rows), params);
}

/// Few rows over 333 tokens in steps of 100, of a policy with 64 channels a head.
template <class P>
void check_few_rows(const PolicyConfig<PolicyOf<P>>& policy = {}) {
  Driver<PagedLayout<>, P> d(device_config(12, 2, 64, 1024), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 333, 100).ok());
  for (const int rows : {1, 3}) check_rows<cuda::HeadDims<64>>(d, s, rows);
}

}  // namespace terse::tests
