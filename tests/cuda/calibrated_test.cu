/// Codecs that use a calibration: the same bytes as on the host, and attention against the oracle,
/// with keys that have a mean.
#include <string>

#include "cuda/columns_check.cuh"
#include "cuda/device_pages.cuh"
#include "cuda/twin_calibration.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using WideDims = cuda::HeadDims<128>;  // kernels take long to compile
using Codes3 = PolicyOf<Shaped3>::key_codec;
using Codes2 = PolicyOf<Shaped2>::value_codec;
using Codes1 = PolicyOf<Shaped2K1V>::value_codec;
using Mixed = Compose<KeyValue<Codes3, Codes1>, H2O>;
/// Keys share scales, so that moved tokens are encoded again, values with theirs.
using SharedKeys = KeyValue<AffineGroup<AffineSpec{.bits = 2,
                                                   .granularity = Granularity::per_channel,
                                                   .group = 64,
                                                   .rule = ScaleRule::min_max}>,
                            Codes2>;

constexpr LayerPlace shared_slots[] = {{0, 0}, {1, 0}, {0, 0}};

/// Random calls on both, with a calibration or without.
template <class P>
void run(std::uint64_t seed, int head_dim, bool is_calibrated, PolicyConfig<PolicyOf<P>> policy,
         int operations, int max_step_tokens = 70, bool encodes_ahead = false) {
  INFO("head dimension " << head_dim << (is_calibrated ? ", calibrated" : ""));
  const CacheConfig config{.num_layers = 3,
                           .num_query_heads = 4,
                           .num_kv_heads = 2,
                           .head_dim = head_dim,
                           .max_sequences = 3,
                           .max_tokens = 512,
                           .max_step_tokens = max_step_tokens,
                           .layers = shared_slots};
  const auto plan = KVCache<PagedLayout<>, P>::plan(config, {policy});
  policy.encodes_ahead = encodes_ahead;
  policy.num_pages = plan->classes[0].shape.num_pages / 2;      // so that some steps are refused
  const TwinCalibration calibration(2, 2, head_dim, seed % 2);  // no alignment is asked for
  PolicyConfig<PolicyOf<P>> on_device = policy;
  if (is_calibrated) {
    policy.calibration = calibration.host.view();
    on_device.calibration = calibration.on_device();
  }
  Twin<PagedLayout<>, P> twin(config, {policy}, {on_device});
  Random random(seed);
  if (encodes_ahead) {
    twin.after_append = [&](int layer) {
      if (random.below(2) == 0) return Status{};
      const Status s = twin.host.cache.encode_ahead(layer);
      return s.ok() ? twin.device.encode_ahead(layer, nullptr) : s;
    };
  }
  TwinRun<Twin<PagedLayout<>, P>> calls(twin, seed);
  REQUIRE(calls.go(operations) == "");
}

PolicyConfig<PolicyOf<Mixed>> keeps_most() {
  return {.eviction = {.heavy_tokens = 150, .recent_tokens = 120}};
}

/// A cache of the host with a calibration that it has, or none.
template <class P>
struct CalibratedDriver {
  HostCalibration calibration;
  Driver<PagedLayout<>, P> driver;
  static PolicyConfig<PolicyOf<P>> with(PolicyConfig<PolicyOf<P>> policy,
                                        const CalibrationView& view) {
    policy.calibration = view;
    return policy;
  }
  CalibratedDriver(const CacheConfig& config, const PolicyConfig<PolicyOf<P>>& policy,
                   bool is_calibrated = true)
      : calibration(1, config.num_kv_heads, config.head_dim),
        driver(config, with(policy, is_calibrated ? calibration.view() : CalibrationView{})) {}
};

}  // namespace

TEST_CASE("shaped errors on host and device", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<Mixed>> policy = keeps_most();
  run<Mixed>(1, 128, true, policy, 80);
  run<Mixed>(2, 64, false, policy, 60);
  policy.tail = TailSpec{.min_tokens = 20, .sink_tokens = 5};
  run<Mixed>(3, 80, true, policy, 80);
  run<Mixed>(4, 20, true, policy, 60);
  run<Mixed>(5, 256, true, policy, 40);
  run<Mixed>(6, 96, false, policy, 60);
  // Steps of few tokens, whose blocks are sealed in pieces by several thread blocks.
  run<Mixed>(7, 128, true, policy, 240, 5);
  run<Mixed>(8, 30, true, policy, 240, 5);
  run<Mixed>(9, 64, false, policy, 240, 5);
  run<Mixed>(12, 128, true, policy, 240, 5);
  // Not so where keys share scales.
  const PolicyConfig<PolicyOf<SharedKeys>> shared_keys{.tail = TailSpec{.min_tokens = 20}};
  run<SharedKeys>(10, 128, true, shared_keys, 200, 5);
}

TEST_CASE("codes that wait in the tail on host and device", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<Mixed>> policy = keeps_most();
  policy.tail = TailSpec{.min_tokens = 130, .sink_tokens = 5};
  run<Mixed>(13, 128, true, policy, 100, 70, true);
  run<Mixed>(14, 64, true, policy, 300, 5, true);
  run<Mixed>(15, 20, false, policy, 300, 5, true);
  const PolicyConfig<PolicyOf<SharedKeys>> shared_keys{.tail = TailSpec{.min_tokens = 70}};
  run<SharedKeys>(16, 128, true, shared_keys, 100, 30, true);
}

TEST_CASE("values encoded again with the calibration of their slot", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  // Blocks that truncations have cut are joined, in one call those of both slots.
  const TwinCalibration calibration(2, kv_heads, dim);
  PolicyConfig<PolicyOf<SharedKeys>> policy{.tail = TailSpec{.min_tokens = 1}};
  PolicyConfig<PolicyOf<SharedKeys>> on_device = policy;
  policy.calibration = calibration.host.view();
  on_device.calibration = calibration.on_device();
  Pair<SharedKeys> pair(config_of(2), {policy}, {on_device});
  const SequenceId id = pair.create();
  for (int kept = 20; kept < 100; kept += 20) {
    pair.fill(id, kept + 250, 128);  // so far that exact copies are gone
    REQUIRE(pair.host.cache.truncate(id, kept).ok());
    REQUIRE(pair.device.truncate(id, kept, nullptr).ok());
  }
  pair.fill(id, 350, 128);
  const auto moved = pair.compact(id, true);
  REQUIRE(moved.ok());
  REQUIRE(*moved > 0);
  REQUIRE(pair.difference(1) == "");
}

TEST_CASE("exports of a calibrated cache on the device", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const bool has_tail : {false, true}) {
    INFO((has_tail ? "tail" : "open"));
    const TwinCalibration calibration(2, kv_heads, dim);
    PolicyConfig<PolicyOf<Mixed>> policy = keeps_most();
    if (has_tail) policy.tail = TailSpec{.min_tokens = 70, .sink_tokens = 5};
    PolicyConfig<PolicyOf<Mixed>> on_device = policy;
    policy.calibration = calibration.host.view();
    on_device.calibration = calibration.on_device();
    Pair<Mixed> pair(config_of(2), {policy}, {on_device});
    const SequenceId a = pair.create(), b = pair.create();
    pair.fill(a, 300, 128);
    pair.step({{b, 100}, {a, 1}});
    for (const int tokens : {3, 6, 1}) pair.step({{a, tokens}, {b, 1}});
    REQUIRE(pair.difference(2) == "");
    check_exports(pair, {b, a});
  }
}

TEST_CASE("attention under a calibration against the oracle", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using Ref = KVCacheRef<PagedLayout<>, PolicyOf<Mixed>>;
  CHECK(std::string(cuda::key_kernel_name<Ref, 128>()) == "affine_3_bit_per_token");
  CHECK(std::string(cuda::value_kernel_name<Ref, 128>()) == "affine_1_bit_per_token");
  const bool has_tail = GENERATE(false, true);
  PolicyConfig<PolicyOf<Mixed>> policy = keeps_most();
  if (has_tail) policy.tail = TailSpec{.min_tokens = 70, .sink_tokens = 5};
  CalibratedDriver<Mixed> calibrated(device_config(12, 2, 128, 1024), policy);
  auto& d = calibrated.driver;
  const SequenceId s = d.create();
  for (const int length : {3, 64, 444}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows<WideDims>(d, s, 1);
    check_rows<WideDims>(d, s, 3);
  }
  const std::vector<float> sinks(12, 1.5f);
  AttendParams params;
  params.sink_logits = sinks.data();
  params.softmax_scale = 0.11f;
  check_rows<WideDims>(d, s, 2, params);
  params.logit_soft_cap = 5.0f;
  check_rows<WideDims>(d, s, 1, params);
  check_rows_columns<WideDims>(d, s, 3, params);
  params = {.sliding_window_tokens = 150};
  check_rows<WideDims>(d, s, 3, params);
  check_rows_columns<WideDims>(d, s, 3);
  REQUIRE(d.cache.evict(s).ok());
  check_rows<WideDims>(d, s, 1);
  check_rows_columns<WideDims>(d, s, 1);
}

TEST_CASE("attention of shaped codes without a calibration", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  CalibratedDriver<Mixed> plain(device_config(12, 2, 128, 1024), keeps_most(), false);
  const SequenceId s = plain.driver.create();
  REQUIRE(plain.driver.fill(s, 333, 100).ok());
  check_rows<WideDims>(plain.driver, s, 1);
  check_rows_columns<WideDims>(plain.driver, s, 3);
}

TEST_CASE("a prefix under distances in the cache, with a calibration", "[cuda][calibrated]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<KeyValue<Codes2, Codes2>, StreamingLLM>;
  using Dims = cuda::HeadDims<64>;
  CacheConfig config = device_config(4, 2, 64, 1024);
  config.rope = {.rotary_dim = 64};
  PolicyConfig<PolicyOf<P>> policy;
  policy.eviction = {.sink_tokens = 6, .window_tokens = 150};
  const bool has_tail = GENERATE(false, true);
  if (has_tail) policy.tail = TailSpec{.min_tokens = 70, .sink_tokens = 4};
  for (const bool is_calibrated : {true, false}) {
    CalibratedDriver<P> calibrated(config, policy, is_calibrated);
    auto& d = calibrated.driver;
    const SequenceId s = d.create();
    for (const int length : {40, 300, 500}) {
      REQUIRE(d.fill(s, length, 100).ok());
      REQUIRE(d.cache.evict(s).ok());
      check_rows<Dims>(d, s, 1);
      check_rows<Dims>(d, s, 3);
      AttendParams params;
      params.logit_soft_cap = 5.0f;
      check_rows<Dims>(d, s, 1, params);
    }
  }
}
