/// Column sums of attention on the device against the fp64 oracle.
#include <algorithm>

#include "cuda/columns_check.cuh"
#include "cuda/user_codec.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using BothDims = cuda::HeadDims<64, 128>;
using Dims = cuda::HeadDims<64>;

}  // namespace

TEMPLATE_TEST_CASE("column sums of every reader on the device", "[cuda][attend]", Identity, Fp8,
                   Int8, Int4Rotated, Kivi2, Kivi3, UserCodec) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const int head_dim : {64, 128}) {
    for (const int group : {1, 4, 12}) {
      Driver<PagedLayout<>, Compose<TestType>> d(device_config(2 * group, 2, head_dim, 2200));
      const SequenceId s = d.create();
      for (const int length : {1, 63, 129, 333, 2113}) {
        if (length > 333 && group != 4) continue;
        REQUIRE(d.fill(s, length, 100).ok());
        check_rows_columns<BothDims>(d, s, 1);
        check_rows_columns<BothDims>(d, s, std::min(length, 9));
        if (length == 333) check_rows_columns<BothDims>(d, s, 100);
      }
    }
  }
}

TEST_CASE("parameters of column sums on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 64, 512));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 444, 100).ok());
  std::vector<float> sinks(4, 1.5f);
  AttendParams p;
  p.softmax_scale = 0.31f;
  p.logit_soft_cap = 5.0f;
  check_rows_columns<Dims>(d, s, 1, p);
  check_rows_columns<Dims>(d, s, 3, p);
  p = {};
  p.sliding_window_tokens = 150;
  check_rows_columns<Dims>(d, s, 3, p);
  p = {};
  p.causal = false;
  check_rows_columns<Dims>(d, s, 4, p);
  p = {};
  p.sink_logits = sinks.data();
  check_rows_columns<Dims>(d, s, 2, p);
}

TEST_CASE("column sums under queries of 16 bits on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 64, 512));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 444, 100).ok());
  const StepPart part{s, 3};
  const auto view = d.cache.layer(0);
  for (const Scalar scalar : {Scalar::f16, Scalar::bf16}) {
    const std::vector<float> queries = rounded(query_rows(d.shape(), 5, 441, 3), scalar);
    const Attended slow = run_attend(view, {&part, 1}, queries, Path::oracle, {}, true);
    REQUIRE(slow.status.ok());
    const DeviceBytes lse = DeviceBytes::copy_of(slow.lse_ln.data(), slow.lse_ln.size());
    DeviceCall call(view, d.buffers.view(), {&part, 1}, queries, {});
    DeviceRows in(3, 4, 64, scalar, 3);
    in.set(queries);
    call.in.queries = in.read_only();
    REQUIRE(cuda::sum_attention_columns<Dims>(call.view, call.in, lse.as<float>(),
                                              call.column_sums.as<float>(), {}, nullptr)
                .ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(relative_l2(used_sums(view, {&part, 1}, call.column_sums.to_host<float>()),
                      used_sums(view, {&part, 1}, slow.column_sums)) < device_tolerance);
  }
}

TEST_CASE("column sums of exact sinks on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, H2O>;
  PolicyConfig<PolicyOf<P>> p;
  p.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64, .sink_tokens = 5};
  p.eviction.heavy_tokens = 40;
  p.eviction.recent_tokens = 60;
  Driver<PagedLayout<>, P> d(device_config(4, 2, 64, 1024), p);
  const SequenceId s = d.create();
  for (const int length : {3, 64, 150, 333, 700}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows_columns<Dims>(d, s, 1);
    check_rows_columns<Dims>(d, s, std::min(length, 40));
    REQUIRE(d.cache.evict(s).ok());
    if (length > 100) REQUIRE(d.cache.compact(s).ok());
    check_rows_columns<Dims>(d, s, 1);
  }
}

TEST_CASE("column sums of exact sinks under open policies on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, H2O>;
  PolicyConfig<PolicyOf<P>> p;
  p.tail = TailSpec{.sink_tokens = 5};
  Driver<PagedLayout<>, P> d(device_config(4, 2, 64, 1024), p);
  REQUIRE(d.shape().open);
  const SequenceId s = d.create();
  for (const int length : {3, 64, 333}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows_columns<Dims>(d, s, 1);
    check_rows_columns<Dims>(d, s, std::min(length, 20));
  }
}

TEST_CASE("column sums of sinks in two blocks on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<Kivi2>> p;
  p.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64, .sink_tokens = 5};
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 64, 1024), p);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 700, 100).ok());
  REQUIRE(d.cache.truncate(s, 3).ok());
  for (const int length : {20, 200}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows_columns<Dims>(d, s, 1);
    check_rows_columns<Dims>(d, s, 9);
  }
}

TEMPLATE_TEST_CASE("column sums of ragged batches on the device", "[cuda][attend]", PagedLayout<>,
                   PagedLayout<HeadPaging::per_head>, ContiguousLayout) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int4Rotated, H2O>;
  PolicyConfig<PolicyOf<P>> p;
  p.eviction.heavy_tokens = 90;
  p.eviction.recent_tokens = 60;
  Driver<TestType, P> d(device_config(8, 2, 64, 3000), p);
  std::vector<StepPart> parts;
  std::vector<float> queries;
  for (const int length : {2900, 3, 700}) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, length, 128).ok());
    if (length == 700) REQUIRE(d.cache.evict(s).ok());
    parts.push_back({s, length == 700 ? 3 : 1});
    const auto rows = query_rows(d.shape(), 9, length, parts.back().tokens);
    queries.insert(queries.end(), rows.begin(), rows.end());
  }
  check_columns<Dims>(d.cache.layer(0), d.buffers.view(), {parts.data(), parts.size()}, queries);
}

TEST_CASE("column sums that cannot be had on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, Int8> d(device_config(4, 2, 64, 512));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 10, 10).ok());
  const StepPart part{s, 1};
  const auto queries = query_rows(d.shape(), 5, 9, 1);
  DeviceCall call(d.cache.layer(0), d.buffers.view(), {&part, 1}, queries, {});
  CHECK(call.attend<Dims>({}, true).code == StatusCode::unsupported);
  CHECK(cuda::sum_attention_columns<Dims>(call.view, call.in, nullptr, call.column_sums.as<float>(),
                                          {}, nullptr)
            .code == StatusCode::null_pointer);
}
