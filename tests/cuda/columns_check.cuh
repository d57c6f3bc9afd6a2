/// Column sums of attention on the device against the fp64 oracle, for the tests of this folder.
#pragma once

#include <vector>

#include "cuda/attend_check.cuh"
#include "support/catch.hpp"

namespace terse::tests {

/// Only the floats of entries in use are compared: the others are not written.
template <class Ref>
std::vector<float> used_sums(const Ref& r, Span<const StepPart> parts,
                             const std::vector<float>& sums) {
  std::vector<float> used;
  const std::size_t unit_floats = static_cast<std::size_t>(r.shape.entries) * block_tokens;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (int u = 0; u < r.shape.unit.units; ++u) {
      const float* own = sums.data() + (i * static_cast<std::size_t>(r.shape.unit.units) +
                                        static_cast<std::size_t>(u)) *
                                           unit_floats;
      const int entries = r.entry_count(parts[i].sequence.index, r.row_of_unit(u));
      used.insert(used.end(), own, own + entries * block_tokens);
    }
  }
  return used;
}

template <class Dims, class Ref>
void check_columns(const Ref& r, const Buffers& host, Span<const StepPart> parts,
                   const std::vector<float>& queries, const AttendParams& params = {}) {
  const Attended slow = run_attend(r, parts, queries, Path::oracle, params, true);
  REQUIRE(slow.status.ok());
  const std::vector<float> expected = used_sums(r, parts, slow.column_sums);
  DeviceCall<Ref> call(r, host, parts, queries, params);
  // With the oracle's log-sum-exp, which is also that of attention computed in parts.
  const DeviceBytes lse = DeviceBytes::copy_of(slow.lse_ln.data(), slow.lse_ln.size());
  const auto sum = [&] {
    const Status s = cuda::sum_attention_columns<Dims>(call.view, call.in, lse.as<float>(),
                                                       call.column_sums.template as<float>(),
                                                       call.params, nullptr);
    INFO(s.text << " " << s.detail);
    REQUIRE(s.ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    return used_sums(r, parts, call.column_sums.template to_host<float>());
  };
  const std::vector<float> first = sum();
  CHECK(relative_l2(first, expected) < device_tolerance);
  CHECK(same_bits(sum(), first));
  if constexpr (Ref::policy::signal == Signal::column_sum) {
    REQUIRE(call.template attend<Dims>({}, true).ok());
    CHECK(relative_l2(used_sums(r, parts, call.column_sums.template to_host<float>()), expected) <
          device_tolerance);
  }
}

template <class Dims, class D>
void check_rows_columns(const D& d, SequenceId s, int rows, const AttendParams& params = {}) {
  INFO(rows << " rows of " << d.shape().query_heads << " over " << d.shape().kv_heads
            << " heads of " << d.shape().head_dim << ", length " << d.length(s));
  const StepPart part{s, rows};
  check_columns<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                      query_rows(d.shape(), 5, d.length(s) - rows, rows), params);
}

}  // namespace terse::tests
