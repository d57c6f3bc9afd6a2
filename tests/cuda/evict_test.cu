/// Eviction by what attention saw, on the device, and caches that move between the processors.
#include <cmath>

#include "cuda/cache_pair.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using Heavy = Compose<Int8, H2O>;

PolicyConfig<PolicyOf<Heavy>> small_budget() {
  PolicyConfig<PolicyOf<Heavy>> policy;
  policy.eviction = {.heavy_tokens = 40, .recent_tokens = 30};
  return policy;
}

/// Attends to the newest token of each part, and feeds both caches what the device's kernel saw.
void observe(Pair<Heavy>& pair, const std::vector<StepPart>& parts, std::uint64_t seed) {
  for (int layer = 0; layer < pair.host.config.num_layers; ++layer) {
    Query query(pair.device.layer(layer), parts, seed);
    const std::size_t floats = parts.size() * pair.device.column_sum_floats(layer);
    const DeviceBytes sums(floats * sizeof(float));
    query.out.column_sums = sums.as<float>();
    REQUIRE(query.launch(pair.device.layer(layer), nullptr).ok());
    REQUIRE(pair.device.observe(layer, parts, {sums.as<float>(), floats}, nullptr).ok());
    const std::vector<float> seen = sums.to_host<float>();
    REQUIRE(pair.host.cache.observe(layer, parts, {seen.data(), seen.size()}).ok());
  }
}

}  // namespace

TEST_CASE("heavy hitters of the device's own attention", "[cuda][evict]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Heavy> pair(2, small_budget());
  const SequenceId a = pair.create(), b = pair.create();
  pair.step({{a, 128}, {b, 60}});
  std::int64_t freed = 0;
  for (int i = 0; i < 400; ++i) {
    pair.step({{a, 1}, {b, 1}});
    observe(pair, {{a, 1}, {b, 1}}, static_cast<std::uint64_t>(100 + i));
    if (i % 16 != 15) continue;
    const std::int64_t expected = *pair.host.cache.evict(a) + *pair.host.cache.evict(b);
    const SequenceId both[] = {a, b};
    REQUIRE(*pair.device.evict(both, 0, nullptr) == expected);
    freed += expected;
    REQUIRE(pair.difference(2) == "");
    check_attention(pair, {{a, 1}, {b, 1}});
  }
  CHECK(freed > 0);
  CHECK(pair.host.cache.memory_usage().live_tokens == 2 * 2 * kv_heads * 70);
}

TEST_CASE("evictions of long units and many sequences", "[cuda][evict]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const bool is_long = GENERATE(true, false);
  CAPTURE(is_long);
  const int sequences = is_long ? 1 : 300, length = is_long ? 20000 : 40;
  CacheConfig config = config_of(1, is_long ? 1000 : 20);
  config.head_dim = 16;
  config.max_sequences = sequences;
  config.max_tokens = length;
  PolicyConfig<PolicyOf<Heavy>> policy;
  policy.eviction = {.heavy_tokens = is_long ? 700 : 7, .recent_tokens = 5, .sink_tokens = 2};
  Twin<PagedLayout<HeadPaging::per_head>, Heavy> twin(config, {policy});
  Random random(8);
  std::vector<SequenceId> ids;
  std::vector<StepPart> parts;
  for (int i = 0; i < sequences; ++i) {
    ids.push_back(*twin.host.cache.create_sequence());
    REQUIRE(*twin.device.create_sequence(nullptr) == ids.back());
    parts.push_back({ids.back(), config.max_step_tokens});
  }
  for (int done = 0; done < length; done += config.max_step_tokens) {
    REQUIRE(twin.host.cache.begin_step(parts).ok());
    REQUIRE(twin.device.begin_step(parts, nullptr).ok());
    REQUIRE(twin.append(random, 0, sequences * config.max_step_tokens, Scalar::f16).ok());
    REQUIRE(twin.host.cache.commit_step().ok());
    REQUIRE(twin.device.commit_step(nullptr).ok());
  }
  parts[0].tokens = is_long ? 1 : 0;  // a part without tokens is fed nothing
  std::vector<StepPart> fed(parts.begin() + (is_long ? 0 : 1), parts.end());
  const std::size_t floats = twin.device.column_sum_floats(0);
  std::vector<float> sums(parts.size() * floats);
  for (float& sum : sums) sum = static_cast<float>(random.below(1000));
  const DeviceBytes copy = DeviceBytes::copy_of(sums.data(), sums.size());
  REQUIRE(twin.device.observe(0, parts, {copy.as<float>(), sums.size()}, nullptr).ok());
  const std::size_t skipped = is_long ? 0 : floats;
  REQUIRE(twin.host.cache.observe(0, fed, {sums.data() + skipped, sums.size() - skipped}).ok());
  std::int64_t freed = 0;
  for (const SequenceId id : ids) freed += *twin.host.cache.evict(id);
  CHECK(*twin.device.evict({ids.data(), ids.size()}, 0, nullptr) == freed);
  CHECK((freed > 0) == is_long);
  REQUIRE(twin.difference(sequences) == "");
  CHECK(twin.copies_agree(ids));
}

TEST_CASE("column sums that are no numbers fail their sequence", "[cuda][evict]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Heavy> pair(1, small_budget());
  const SequenceId a = pair.create(), b = pair.create();
  pair.step({{a, 100}, {b, 100}});
  const std::vector<StepPart> parts = {{a, 1}, {b, 1}};
  const std::size_t floats = pair.device.column_sum_floats(0);
  std::vector<float> sums(2 * floats, 0.5f);
  const auto unit_floats = static_cast<std::size_t>(pair.shape(0).entries) * block_tokens;
  sums[floats + unit_floats + 70] = INFINITY;  // of b's second unit
  sums[floats + 200] = NAN;                    // of no token
  const DeviceBytes copy = DeviceBytes::copy_of(sums.data(), sums.size());
  REQUIRE(pair.device.observe(0, parts, {copy.as<float>(), sums.size()}, nullptr).ok());
  CHECK(pair.device.evict(b, 0, nullptr).status().code == StatusCode::wrong_phase);
  const OwnedBuffers unused{pair.host.cache.memory_plan()};
  CHECK(pair.device.copy_to(unused.view(), nullptr).code == StatusCode::wrong_phase);
  CHECK(pair.device.recover(a, nullptr).ok());
  CHECK(pair.device.recover(b, nullptr).code == StatusCode::not_finite);
  CHECK(pair.device.recover(b, nullptr).ok());
  // b has been fed nothing, a all.
  REQUIRE(pair.host.cache.observe(0, {parts.data(), 1}, {sums.data(), floats}).ok());
  REQUIRE(pair.difference(2) == "");
  REQUIRE(*pair.device.evict(b, 0, nullptr) == *pair.host.cache.evict(b));
  REQUIRE(pair.difference(2) == "");
}

TEST_CASE("evictions that are refused on the device", "[cuda][evict]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Heavy> pair(1, small_budget());
  const SequenceId id = pair.create();
  pair.step({{id, 100}});
  const SequenceId twice[] = {id, id};
  CHECK(pair.device.evict(twice, 0, nullptr).status().code == StatusCode::invalid_argument);
  CHECK(pair.device.evict(id, -1, nullptr).status().code == StatusCode::invalid_argument);
  CHECK(pair.device.evict({id.index, id.generation + 1}, 0, nullptr).status().code ==
        StatusCode::stale_sequence);
  const StepPart part{id, 1};
  CHECK(pair.device.observe(0, {&part, 1}, {}, nullptr).code == StatusCode::buffer_too_small);
  CHECK(pair.device.observe(1, {&part, 1}, {}, nullptr).code == StatusCode::invalid_argument);
  const StepPart repeated[] = {part, part};
  CHECK(pair.device.observe(0, repeated, {}, nullptr).code == StatusCode::invalid_argument);
  REQUIRE(pair.host.cache.begin_step({&part, 1}).ok());
  REQUIRE(pair.device.begin_step({&part, 1}, nullptr).ok());
  CHECK(pair.device.evict(id, 0, nullptr).status().code == StatusCode::wrong_phase);
  CHECK(pair.device.observe(0, {&part, 1}, {}, nullptr).code == StatusCode::wrong_phase);
  CHECK(pair.device.evict(Span<const SequenceId>(), 0, nullptr).status().code ==
        StatusCode::wrong_phase);
  const OwnedBuffers unused{pair.host.cache.memory_plan()};
  CHECK(pair.device.copy_to(unused.view(), nullptr).code == StatusCode::wrong_phase);
  REQUIRE(pair.host.cache.abandon_step().ok());
  REQUIRE(pair.device.abandon_step(nullptr).ok());
  REQUIRE(pair.difference(1) == "");
}

TEST_CASE("pages of the engine's are not copied", "[cuda][evict]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<Heavy>> policy = small_budget();
  policy.borrows_pages = true;
  Twin<PagedLayout<>, Heavy> twin(config_of(1), {policy});
  const OwnedBuffers copy{twin.host.cache.memory_plan()};
  CHECK(twin.device.copy_to(copy.view(), nullptr).code == StatusCode::unsupported);
  using Device = cuda::KVCache<PagedLayout<>, Heavy>;
  CHECK(Device::create_from(config_of(1), twin.host.buffers.view(), {}, nullptr, {policy})
            .status()
            .code == StatusCode::unsupported);
}

TEMPLATE_TEST_CASE("caches that go to the host and come back", "[cuda][evict]", Kivi2, Heavy) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using Host = KVCache<PagedLayout<>, TestType>;
  using Device = cuda::KVCache<PagedLayout<>, TestType>;
  Pair<TestType> pair(2);
  const SequenceId a = pair.create(), b = pair.create();
  pair.step({{a, 128}, {b, 77}});
  pair.step({{a, 128}, {b, 1}});
  REQUIRE(*pair.host.cache.fork(a) == *pair.device.fork(a, nullptr));
  if constexpr (Pair<TestType>::evicts) {
    observe(pair, {{a, 1}, {b, 1}}, 3);
    REQUIRE(*pair.host.cache.evict(a) == *pair.device.evict(a, 0, nullptr));
  }
  CHECK(pair.copies_agree({a, b}));
  const OwnedBuffers copy{pair.host.cache.memory_plan()};
  REQUIRE(pair.device.copy_to(copy.view(), nullptr).ok());
  REQUIRE(Host::attach(pair.host.config, copy.view()).ok());
  // It goes on here as if it had stayed.
  const auto plan = *Device::plan(pair.host.config);
  const DeviceBytes pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  const AlignedBytes mirror(plan.mirror_bytes);
  const cuda::CacheBuffers buffers{pages.span(), tails.span(), state.span(), mirror.span()};
  auto again = Device::create_from(pair.host.config, copy.view(), buffers, nullptr);
  REQUIRE(again.ok());
  for (int i = 0; i < 70; ++i) {
    const std::vector<StepPart> parts = {{a, 1}, {b, 1}};
    const TwinInputs in(pair.random, pair.shape(0), 2, Scalar::f16);
    for (Device* cache : {&*again, &pair.device}) {
      REQUIRE(cache->begin_step(parts, nullptr).ok());
      for (int layer = 0; layer < 2; ++layer) {
        REQUIRE(cache->append(layer, in.on_device(), nullptr).ok());
      }
      REQUIRE(cache->commit_step(nullptr).ok());
    }
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
  CHECK(attend_on_device(*again, {{a, 1}, {b, 1}}, 4) ==
        attend_on_device(pair.device, {{a, 1}, {b, 1}}, 4));
  CHECK(Device::create_from(config_of(3), copy.view(), buffers, nullptr).status().code ==
        StatusCode::buffer_too_small);
  const OwnedBuffers empty{pair.host.cache.memory_plan()};
  CHECK(Device::create_from(pair.host.config, empty.view(), buffers, nullptr).status().code ==
        StatusCode::mismatch);
}
