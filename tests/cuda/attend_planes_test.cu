/// Planes read as deep as tolerances ask: bounds, bytes read, and what is refused.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/attend_check.cuh"
#include "support/dominant_token.hpp"
#include "support/plane_readings.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64, 128>;

template <class D>
Attended read(const D& d, SequenceId s, int rows, const PlaneReading& planes,
              Path path = Path::vectorised, int thread_blocks = 0) {
  const StepPart part{s, rows};
  const auto queries = query_rows(d.shape(), 5, d.length(s) - rows, rows);
  AttendParams params;
  params.planes = planes;
  const auto r = d.cache.layer(0);
  if (path == Path::oracle) return run_attend(r, {&part, 1}, queries, Path::vectorised, params);
  Attended out = run_on_device<Dims>(r, d.buffers.view(), {&part, 1}, queries, params,
                                     {.thread_blocks = thread_blocks});
  INFO(out.status.text);
  REQUIRE(out.status.ok());
  return out;
}

}  // namespace

TEST_CASE("tolerances bound what the device reads less", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const int head_dim : {64, 128}) {
    for (const int group : {1, 4, 12}) {
      Driver<PagedLayout<>, AlignedKV> d(device_config(2 * group, 2, head_dim, 1500));
      const SequenceId s = d.create();
      REQUIRE(d.fill(s, 1400, 128).ok());
      CAPTURE(head_dim, group);
      const Attended whole = read(d, s, 1, {});
      const Attended on_host = read(d, s, 1, {}, Path::oracle);
      if (group <= 8) {
        CHECK(sum_of(whole).keys == sum_of(on_host).keys);
        CHECK(sum_of(whole).values == sum_of(on_host).values);
      }
      const Attended exact = read(d, s, 1, within(0, 0));
      CHECK(relative_l2(exact.output, whole.output) < 1e-3);
      for (const float tolerance : {0.01f, 0.1f, 0.5f}) {
        CAPTURE(tolerance);
        const Attended keys = read(d, s, 1, within(tolerance, 0));
        CHECK(largest_difference(keys.lse_ln, whole.lse_ln) <= tolerance + 1e-3);
        CHECK(largest_difference(keys.output, whole.output) <=
              5 * std::expm1(2 * tolerance) + 1e-3);
        const Attended values = read(d, s, 1, within(0, tolerance));
        CHECK(largest_difference(values.lse_ln, whole.lse_ln) < 1e-3);
        CHECK(largest_difference(values.output, whole.output) <= 8 * tolerance + 1e-3);
        CHECK(sum_of(keys).keys <= sum_of(whole).keys);
        CHECK(sum_of(values).values <= sum_of(whole).values);
        if (tolerance > 0.05f) {
          CHECK(sum_of(keys).keys < sum_of(whole).keys);
          CHECK(sum_of(values).values < sum_of(whole).values);
        }
        // Work is divided otherwise on the host, whose probabilities are others for that.
        const Attended both = read(d, s, 1, within(tolerance, tolerance));
        const Attended both_on_host = read(d, s, 1, within(tolerance, tolerance), Path::oracle);
        CHECK(sum_of(both).keys == sum_of(keys).keys);
        const auto ratio = [](std::uint64_t a, std::uint64_t b) {
          return static_cast<double>(a) / static_cast<double>(b);
        };
        if (group <= 8) {
          CHECK(std::fabs(ratio(sum_of(both).keys, sum_of(both_on_host).keys) - 1) < 0.01);
          CHECK(ratio(sum_of(both).values, sum_of(both_on_host).values) < 1.4);
          CHECK(ratio(sum_of(both).values, sum_of(both_on_host).values) > 0.7);
        }
        CHECK(largest_difference(both.output, both_on_host.output) <=
              2 * (5 * std::expm1(2 * tolerance) + 8 * tolerance) + 1e-3);
      }
    }
  }
}

TEST_CASE("planes are read alike from run to run, by any number of thread blocks within bounds",
          "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, AlignedKV> d(device_config(8, 2, 128, 3000));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 2900, 128).ok());
  const Attended whole = read(d, s, 3, {});
  for (const int thread_blocks : {1, 3, 0}) {
    const Attended first = read(d, s, 3, within(0.05f, 0.02f), Path::vectorised, thread_blocks);
    const Attended second = read(d, s, 3, within(0.05f, 0.02f), Path::vectorised, thread_blocks);
    CHECK(same_bits(first, second));
    CHECK(sum_of(first).keys == sum_of(second).keys);
    CHECK(sum_of(first).values == sum_of(second).values);
    CHECK(largest_difference(first.output, whole.output) <= 5 * std::expm1(0.1) + 0.02 * 8);
    CHECK(sum_of(first).keys + sum_of(first).values <
          (sum_of(whole).keys + sum_of(whole).values) / 10 * 9);
  }
}

TEST_CASE("where all errors add up they come close to the tolerance and no further on the device",
          "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const DominantToken token;
  Driver<PagedLayout<>, AlignedKV> d(DominantToken::config());
  const SequenceId s = d.create();
  REQUIRE(token.fill(d, s).ok());
  const StepPart part{s, 1};
  const auto attend = [&](const PlaneReading& planes) {
    AttendParams params;
    params.planes = planes;
    return run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1}, token.query, params);
  };
  const Attended whole = attend({});
  for (const float tolerance : {0.003f, 0.01f, 0.05f, 0.2f}) {
    CAPTURE(tolerance);
    const double keys = largest_difference(attend(within(tolerance, 0)).lse_ln, whole.lse_ln);
    CHECK(keys <= tolerance * 1.001 + 1e-5);
    CHECK(keys >= tolerance * 0.25);
    const Attended values = attend(within(0, tolerance));
    CHECK(largest_difference(values.output, whole.output) <= tolerance * 2184 / 2048 * 1.001);
    if (tolerance > 0.1f) CHECK(sum_of(values).values < sum_of(whole).values);
  }
}

TEST_CASE("queries that a tile lacks have no part in the plan", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  // Eight heads that ask the same read what one does, and one has seven columns without a query.
  const auto bytes = [](int group) {
    Driver<PagedLayout<>, AlignedKV> d(device_config(group, 1, 128, 3000));
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 2900, 128).ok());
    std::vector<float> one = query_rows(d.shape(), 5, 2899, 1), queries;
    one.resize(128);
    for (float& x : one) x *= 3.0f;
    for (int i = 0; i < group; ++i) queries.insert(queries.end(), one.begin(), one.end());
    const StepPart part{s, 1};
    AttendParams params;
    params.planes = within(0.1f, 0.1f);
    const Attended a = run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1}, queries,
                                           params, {.thread_blocks = 1});
    REQUIRE(a.status.ok());
    return sum_of(a);
  };
  const BytesRead alone = bytes(1), together = bytes(8);
  CHECK(alone.keys == together.keys);
  CHECK(alone.values == together.values);
  CHECK(alone.values * 10 < alone.values_stored * 7);
}

TEST_CASE("plans, caps, windows, sinks and holes together", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<AlignedKV, H2O>;
  PolicyConfig<PolicyOf<P>> policy;
  policy.eviction = {.heavy_tokens = 200, .recent_tokens = 200};
  Driver<PagedLayout<HeadPaging::per_head>, P> d(device_config(8, 2, 128, 1500), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 1400, 128).ok());
  REQUIRE(d.cache.evict(s).ok());
  const float sinks[] = {-3.0f, 0.0f, 2.0f, 8.0f, -INFINITY, 1.0f, 0.0f, 4.0f};
  const PlaneReading exact = within(0, 0);
  for (const AttendParams& params :
       {AttendParams{.planes = exact}, AttendParams{.sink_logits = sinks, .planes = exact},
        AttendParams{.logit_soft_cap = 5.0f, .sliding_window_tokens = 700, .planes = exact}}) {
    check_rows<Dims>(d, s, 1, params);
    check_rows<Dims>(d, s, 5, params);
  }
  REQUIRE(d.cache.compact(s).ok());
  check_rows<Dims>(d, s, 3, {.planes = exact});
}

TEST_CASE("what the device refuses of a reading", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, AlignedKV> d(device_config(2, 1, 64, 300));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 200, 100).ok());
  const auto status = [&](const PlaneReading& planes) {
    const StepPart part{s, 1};
    AttendParams params;
    params.planes = planes;
    return run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                               query_rows(d.shape(), 5, 199, 1), params)
        .status;
  };
  CHECK(status({PlaneRule::exponents, 0, 0, 0}).code == StatusCode::unsupported);
  CHECK(status(within(-1, 0)).code == StatusCode::invalid_argument);
  CHECK(status(within(0, INFINITY)).code == StatusCode::invalid_argument);
}
