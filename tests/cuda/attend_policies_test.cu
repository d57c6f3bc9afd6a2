/// Attention on the device with evictors, forks, layouts, parameters and a user's codec.
#include <cmath>
#include <string>

#include "cuda/attend_check.cuh"
#include "cuda/user_codec.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64>;  // kernels take long to compile
using WideDims = cuda::HeadDims<128>;

template <class L, class P>
void check_parameters(Driver<L, P>& d, SequenceId s) {
  std::vector<float> sinks(static_cast<std::size_t>(d.shape().query_heads), 1.5f);
  AttendParams p;
  check_rows<Dims>(d, s, 3, p);
  p.softmax_scale = 0.31f;
  check_rows<Dims>(d, s, 3, p);
  p.logit_soft_cap = 5.0f;
  check_rows<Dims>(d, s, 1, p);
  p = {};
  p.sliding_window_tokens = 150;
  check_rows<Dims>(d, s, 3, p);
  p = {};
  p.causal = false;
  check_rows<Dims>(d, s, 4, p);
  p = {};
  p.sink_logits = sinks.data();
  check_rows<Dims>(d, s, 2, p);
}

}  // namespace

TEST_CASE("attend parameters on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 64, 512));
  SequenceId s = d.create();
  REQUIRE(d.fill(s, 444, 100).ok());
  check_parameters(d, s);
  Driver<ContiguousLayout, Int8> e(device_config(4, 2, 64, 512));
  s = e.create();
  REQUIRE(e.fill(s, 444, 100).ok());
  check_parameters(e, s);
}

TEST_CASE("queries and outputs of 16 bits on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const auto check = [](auto driver) {
    const SequenceId s = driver.create();
    REQUIRE(driver.fill(s, 444, 100).ok());
    for (const int rows : {1, 5}) check_row_types<Dims>(driver, s, rows);
  };
  check(Driver<PagedLayout<>, Kivi2>(device_config(6, 2, 64, 512)));
  check(Driver<ContiguousLayout, Int8>(device_config(4, 2, 64, 512)));
  check(Driver<PagedLayout<>, Compose<UserCodec>>(device_config(4, 2, 64, 512)));
}

TEST_CASE("exact sinks on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<Kivi2>> p;
  p.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64, .sink_tokens = 5};
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 64, 512), p);
  const SequenceId s = d.create();
  for (const int length : {3, 64, 150, 333}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows<Dims>(d, s, 1);
    check_rows<Dims>(d, s, std::min(length, 40));
  }
}

TEST_CASE("evicted tokens and per-head pages on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int4Rotated, H2O>;
  PolicyConfig<PolicyOf<P>> p;
  p.eviction.heavy_tokens = 90;
  p.eviction.recent_tokens = 60;
  Driver<PagedLayout<HeadPaging::per_head>, P> d(device_config(4, 2, 64, 1024), p);
  const SequenceId s = d.create();
  for (int i = 0; i < 6; ++i) {
    REQUIRE(d.fill(s, 150 * (i + 1), 75).ok());
    const Attended seen = d.attend(s, 75, Path::vectorised, {}, true);
    REQUIRE(seen.status.ok());
    const StepPart part{s, 75};
    REQUIRE(
        d.cache.observe(0, {&part, 1}, {seen.column_sums.data(), seen.column_sums.size()}).ok());
    REQUIRE(d.cache.evict(s).ok());
    check_rows<Dims>(d, s, 1);
    check_rows<Dims>(d, s, 4);
    if (i % 2 == 1) {
      REQUIRE(d.cache.compact(s, true).ok());
      check_rows<Dims>(d, s, 2);
    }
  }
}

TEST_CASE("several hundred page lists on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  // Two lists a sequence. A thread that divides the work has up to three of them, so that its first
  // is that of a sequence's second head.
  using P = Compose<Int4Rotated, H2O>;
  CacheConfig config = device_config(4, 2, 64, 192);
  config.max_sequences = 192;
  Driver<PagedLayout<HeadPaging::per_head>, P> d(config);
  std::vector<StepPart> parts;
  std::vector<float> queries;
  for (int i = 0; i < config.max_sequences; ++i) {
    const int length = i % 41 == 7 ? 140 : 3 + i * 7 % 19;
    parts.push_back({d.create(), 1 + i % 3});
    REQUIRE(d.fill(parts.back().sequence, length, 100).ok());
    const auto rows = query_rows(d.shape(), 5, length - parts.back().tokens, parts.back().tokens);
    queries.insert(queries.end(), rows.begin(), rows.end());
    if (i + 1 != 64 && i + 1 != 65 && i + 1 != 129 && i + 1 != 192) continue;
    check_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), {parts.data(), parts.size()},
                               queries);
  }
}

TEST_CASE("forks and truncated sequences on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 128, 1024));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 500, 100).ok());
  const auto twin = d.cache.fork(s);
  REQUIRE(twin.ok());
  REQUIRE(d.fill(*twin, 700, 128, 2).ok());
  REQUIRE(d.cache.truncate(s, 222).ok());
  REQUIRE(d.fill(s, 290, 50).ok());
  check_rows<WideDims>(d, s, 1);
  check_rows<WideDims>(d, s, 90);  // back to the beginning of the new grid
  check_rows<WideDims>(d, *twin, 30);
}

TEST_CASE("rows older than a truncated sequence's new grid on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Driver<PagedLayout<>, Kivi2> d(device_config(4, 2, 64, 1024));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 500, 100).ok());
  REQUIRE(d.cache.truncate(s, 200).ok());
  for (const int rows : {1, 20, 128}) check_rows<Dims>(d, s, rows);
}

TEST_CASE("blocks evicted between exact ones on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Kivi2, SinkWindow>;
  PolicyConfig<PolicyOf<P>> p;
  p.eviction.sink_tokens = 4;
  SECTION("one row, after a truncation into a gap") {
    p.eviction.window_tokens = 100;
    Driver<PagedLayout<>, P> d(device_config(4, 2, 64, 1024), p);
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 600, 100).ok());
    REQUIRE(d.cache.evict(s).ok());
    REQUIRE(d.cache.truncate(s, 505).ok());
    for (int i = 0; i < 10; ++i) {
      check_rows<Dims>(d, s, 1);
      REQUIRE(d.step(s, 1).ok());
    }
  }
  SECTION("several rows, on a grid that does not begin at zero") {
    p.eviction.window_tokens = 20;
    Driver<PagedLayout<>, P> d(device_config(4, 2, 64, 1024), p);
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 900, 128).ok());
    REQUIRE(d.cache.truncate(s, 100).ok());
    REQUIRE(d.fill(s, 400, 128).ok());
    REQUIRE(d.cache.evict(s).ok());
    const StepPart part{s, 128};
    const auto queries = query_rows(d.shape(), 5, 400 - 128, 128);
    const Attended slow = run_attend(d.cache.layer(0), {&part, 1}, queries, Path::oracle);
    if (slow.status.ok()) check_rows<Dims>(d, s, 128);
    check_rows<Dims>(d, s, 1);
  }
}

TEMPLATE_TEST_CASE("masked blocks that come in two parts on the device", "[cuda][attend]",
                   (Compose<Int8, H2O>), (Compose<Identity, H2O>)) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<TestType>> p;
  p.eviction.heavy_tokens = 400;
  p.eviction.recent_tokens = 60;
  Driver<PagedLayout<>, TestType> d(device_config(16, 2, 128, 2048), p);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 1500, 100).ok());
  AttendParams window;
  window.sliding_window_tokens = 300;
  check_rows<WideDims>(d, s, 1, window);
  check_rows<WideDims>(d, s, 2, window);
  const Attended seen = d.attend(s, 75, Path::vectorised, {}, true);
  const StepPart part{s, 75};
  REQUIRE(d.cache.observe(0, {&part, 1}, {seen.column_sums.data(), seen.column_sums.size()}).ok());
  REQUIRE(d.cache.evict(s).ok());
  check_rows<WideDims>(d, s, 1);
  check_rows<WideDims>(d, s, 100);
}

TEST_CASE("levels with a scale for 16 channels, and a rotation, on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using R = KVCacheRef<PagedLayout<>, PolicyOf<NvFp4Rotated>>;
  CHECK(std::string(cuda::key_kernel_name<R, 64>()) == "elements_4_bit");
  Driver<PagedLayout<>, NvFp4Rotated> d(device_config(4, 2, 64, 512));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 100).ok());
  check_rows<Dims>(d, s, 1);
  check_rows<Dims>(d, s, 7);
}

TEST_CASE("a user's codec on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using R = KVCacheRef<PagedLayout<>, PolicyOf<Compose<UserCodec>>>;
  static_assert(!cuda::is_specialized<R, 64>);
  CHECK(std::string(cuda::key_kernel_name<R, 64>()) == "decode");
  using K = KVCacheRef<PagedLayout<>, PolicyOf<Kivi2>>;
  CHECK(std::string(cuda::key_kernel_name<K, 64>()) == "affine_2_bit_per_channel");
  CHECK(std::string(cuda::value_kernel_name<K, 64>()) == "affine_2_bit_per_token");
  Driver<PagedLayout<>, Compose<UserCodec>> d(device_config(4, 2, 64, 512));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 100).ok());
  check_rows<Dims>(d, s, 1);
  check_rows<Dims>(d, s, 7);
  AttendParams params;
  params.require_specialized = true;
  const StepPart part{s, 1};
  const Attended refused = run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                                               query_rows(d.shape(), 5, 299, 1), params);
  CHECK(refused.status.code == StatusCode::unsupported);
  params = {.latent_output = true};
  const Attended latent = run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                                              query_rows(d.shape(), 5, 299, 1), params);
  CHECK(latent.status.code == StatusCode::invalid_argument);
}
