/// Attention on the device against the fp64 oracle: query groups, rows, lengths and ragged batches
/// of the policies in TERSE_TEST_POLICIES. Each including file compiles the kernels of a few.
#pragma once

#include "cuda/attend_check.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64, 128>;

}  // namespace

TEMPLATE_TEST_CASE("query groups and rows on the device", "[cuda][attend]", TERSE_TEST_POLICIES) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const int head_dim : {64, 128}) {
    for (const int group : {1, 3, 4, 8, 16}) {
      Driver<PagedLayout<>, TestType> d(device_config(2 * group, 2, head_dim, 512));
      const SequenceId s = d.create();
      REQUIRE(d.fill(s, 333, 128).ok());
      for (const int rows : {1, 2, 5}) check_rows<Dims>(d, s, rows);
    }
  }
}

TEMPLATE_TEST_CASE("lengths around every boundary on the device", "[cuda][attend]",
                   TERSE_TEST_POLICIES) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, TestType> d(device_config(3, 1, 64, 2200));
  const SequenceId s = d.create();
  for (const int length : {1, 15, 17, 63, 64, 65, 127, 128, 129, 193, 1000, 2113}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows<Dims>(d, s, 1);
    check_rows<Dims>(d, s, std::min(length, 20));
    if (length <= 193) check_rows<Dims>(d, s, std::min(length, 100));
  }
}

TEMPLATE_TEST_CASE("ragged batches on the device", "[cuda][attend]", TERSE_TEST_POLICIES) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, TestType> d(device_config(8, 2, 128, 3000));
  std::vector<StepPart> parts;
  std::vector<float> queries;
  for (const int length : {2900, 3, 700}) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, length, 128).ok());
    parts.push_back({s, length == 700 ? 3 : 1});
    const auto rows = query_rows(d.shape(), 9, length, parts.back().tokens);
    queries.insert(queries.end(), rows.begin(), rows.end());
  }
  check_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), {parts.data(), parts.size()},
                             queries);
}
