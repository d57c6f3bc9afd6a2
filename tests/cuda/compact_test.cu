/// Compaction on the device: the pages, tables and page numbers that the host's leaves.
#include <cmath>
#include <cstring>

#include "cuda/cache_pair.cuh"
#include "cuda/user_codec.cuh"

using namespace terse;
using namespace terse::tests;

/// Moves tokens by a function of its own.
struct MovableCodec : UserCodec {
  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    std::memcpy(to + to_token * context.width * 2, from + from_token * context.width * 2,
                static_cast<std::size_t>(context.width) * 2);
  }
};

namespace {

using PerHead = PagedLayout<HeadPaging::per_head>;
/// Codes share bytes with those of other tokens.
using ThreeBits = AffineGroup<AffineSpec{.bits = 3, .group = 16}>;
using Rough = Kivi<KiviSpec{.bits = 2, .group_channels = 16, .residual_tokens = 64}>;

CacheConfig small_config(int head_dim) {
  CacheConfig config = config_of(2, 70);
  config.head_dim = head_dim;
  config.rope = {.rotary_dim = head_dim};
  config.max_sequences = 3;
  config.max_tokens = 512;
  return config;
}

/// Random calls, in a pool that is often too small.
template <Layout L, class P>
void run(std::uint64_t seed, int head_dim, PolicyConfig<PolicyOf<P>> policy, int operations = 250) {
  const CacheConfig config = small_config(head_dim);
  if constexpr (L::paged) {
    const auto plan = KVCache<L, P>::plan(config, {policy});
    policy.num_pages = plan->classes[0].shape.num_pages / 2;
  }
  Twin<L, P> twin(config, {policy});
  TwinRun<Twin<L, P>> calls(twin, seed);
  REQUIRE(calls.go(operations) == "");
  CHECK(calls.moved() > 0);
}

template <class P>
PolicyConfig<PolicyOf<P>> heavy(int heavy_tokens, int recent_tokens) {
  PolicyConfig<PolicyOf<P>> policy;
  policy.eviction = {.heavy_tokens = heavy_tokens, .recent_tokens = recent_tokens};
  return policy;
}

/// A sequence on both sides.
template <Layout L, class P>
struct Single : Pair<P, L> {
  SequenceId id;

  Single(const CacheConfig& config, const PolicyConfig<PolicyOf<P>>& policy)
      : Pair<P, L>(config, policy), id(this->create()) {}
  void fill(int length) { Pair<P, L>::fill(id, length, this->host.config.max_step_tokens); }
  void truncate(int length) {
    REQUIRE(this->host.cache.truncate(id, length).ok());
    REQUIRE(this->device.truncate(id, length, nullptr).ok());
  }
  SequenceId fork() {
    const SequenceId twin = *this->host.cache.fork(id);
    REQUIRE(*this->device.fork(id, nullptr) == twin);
    return twin;
  }
  void evict() {
    const std::int64_t freed = *this->host.cache.evict(id);
    REQUIRE(*this->device.evict(id, 0, nullptr) == freed);
  }
  /// Lets random tokens weigh most.
  void observe_newest() {
    const StepPart newest{id, 1};
    for (int layer = 0; layer < this->host.config.num_layers; ++layer) {
      REQUIRE(this->observe(this->random, layer, {&newest, 1}).ok());
    }
  }
  /// Lets one token in `distance` weigh most, in layer 0.
  void observe_every(int distance) {
    const StepPart newest{id, 1};
    std::vector<float> sums(this->host.cache.column_sum_floats(0), 0.0f);
    for (std::size_t i = 5; i < sums.size(); i += static_cast<std::size_t>(distance)) sums[i] = 1;
    const DeviceBytes copy = DeviceBytes::copy_of(sums.data(), sums.size());
    REQUIRE(this->host.cache.observe(0, {&newest, 1}, sums).ok());
    REQUIRE(this->device.observe(0, {&newest, 1}, {copy.as<float>(), sums.size()}, nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
};

/// A sequence with blocks that truncations have cut.
template <Layout L, class P>
void join(const PolicyConfig<PolicyOf<P>>& policy) {
  Single<L, P> twin(small_config(48), policy);
  for (int kept = 20; kept < 100; kept += 20) {
    twin.fill(kept + 250);  // so far that exact copies are gone
    twin.truncate(kept);
  }
  twin.fill(350);
  if constexpr (Twin<L, P>::evicts) twin.evict();
  const auto moved = twin.compact(twin.id, true);
  REQUIRE(moved.ok());
  CHECK(*moved > 0);
  REQUIRE(twin.difference(1) == "");
  twin.fill(440);
  REQUIRE(twin.difference(1) == "");
}

}  // namespace

TEST_CASE("survivors move together on host and device", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Compose<Int8, H2O>>(1, 64, heavy<Compose<Int8, H2O>>(50, 20));
  run<PerHead, Compose<Identity, H2O>>(2, 80, heavy<Compose<Identity, H2O>>(50, 20));
  run<ContiguousLayout, Compose<Fp8, H2O>>(3, 48, heavy<Compose<Fp8, H2O>>(50, 20));
  using Rotated = Compose<Int4Rotated, Tail<TailSpec{.min_tokens = 10}>, H2O>;
  run<PagedLayout<>, Rotated>(4, 64, heavy<Rotated>(60, 5));
  run<PerHead, Compose<ThreeBits, H2O>>(9, 80, heavy<Compose<ThreeBits, H2O>>(50, 20));
  run<ContiguousLayout, Compose<MovableCodec, H2O>>(5, 24,
                                                    heavy<Compose<MovableCodec, H2O>>(50, 20));
}

TEST_CASE("tokens that share scales are encoded again on host and device", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Compose<Rough, H2O>>(6, 64, heavy<Compose<Rough, H2O>>(60, 5));
  run<ContiguousLayout, Compose<Rough, H2O>>(7, 48, heavy<Compose<Rough, H2O>>(60, 5));
  run<PerHead, Compose<Kivi2, AttentionGate>>(8, 64, {});
}

TEST_CASE("blocks cut short are joined on host and device", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const TailSpec tail{.min_tokens = 4};
  join<PagedLayout<>, Int8>({.tail = tail});
  join<PerHead, Identity>({.tail = tail});
  join<ContiguousLayout, Fp8>({.tail = tail});
  join<PagedLayout<>, Rough>({});
  join<ContiguousLayout, Kivi2>({});
  using Window = Compose<Rough, StreamingLLM>;
  join<PagedLayout<>, Window>({.eviction = {.sink_tokens = 4, .window_tokens = 300}});
}

TEST_CASE("more lists than a launch of compaction serves", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, H2O>;
  CacheConfig config = config_of(40, 1000);
  config.num_query_heads = config.num_kv_heads = 8;
  config.head_dim = 16;
  config.max_sequences = 1;
  config.max_tokens = 2000;
  Single<PerHead, P> twin(config, heavy<P>(800, 40));  // 320 lists: three launches
  twin.fill(2000);
  twin.observe_newest();
  twin.evict();
  const auto moved = twin.compact(twin.id, false);
  REQUIRE(moved.ok());
  CHECK(*moved == 320 * 824);  // 16 lie in a block that is not full
  REQUIRE(twin.difference(1) == "");
}

TEST_CASE("survivors few and far between", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  // A block takes its tokens of 100 entries; or ends because of their distances, after 33 tokens.
  const auto& [length, distance, blocks] =
      GENERATE(std::tuple{8192, 100, 2}, std::tuple{140000, 2000, 3});
  CAPTURE(length);
  using P = Compose<Int8, H2O>;
  CacheConfig config = config_of(1, 10000);
  config.num_query_heads = config.num_kv_heads = 1;
  config.head_dim = 16;
  config.max_sequences = 1;
  config.max_tokens = length;
  Single<PagedLayout<>, P> twin(config, heavy<P>(length / distance, 1));
  twin.fill(length);
  twin.observe_every(distance);
  twin.evict();
  REQUIRE(twin.difference(1) == "");
  const int before = twin.host.cache.layer(0).entry_count(twin.id.index, 0);
  REQUIRE(before > length / distance / 2);
  REQUIRE(twin.compact(twin.id, false).ok());
  REQUIRE(twin.difference(1) == "");
  CHECK(twin.host.cache.layer(0).entry_count(twin.id.index, 0) <= blocks + 1);
}

TEST_CASE("a list that is rewritten in two launches", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, H2O>;
  PolicyConfig<PolicyOf<P>> policy = heavy<P>(200, 46);
  // Of the 7 blocks of each of 4 lists a fork shares 3, which do not come back: a list needs 4
  // pages and then gives 4. After the first list 2 are free, so the second one stops half-way.
  policy.num_pages = 4 * 7 + 6;
  Single<PerHead, P> twin(small_config(dim), policy);
  twin.fill(192);
  twin.fork();
  twin.fill(448);
  twin.observe_newest();
  twin.evict();
  REQUIRE(twin.host.cache.memory_usage().pages_free == 6);
  REQUIRE(twin.device.plan_compact(twin.id)->pages_needed == 4);
  REQUIRE(twin.compact(twin.id, false).ok());
  REQUIRE(twin.difference(2) == "");
  CHECK(twin.host.cache.memory_usage().pages_free == 6);
}

TEST_CASE("compaction with one spare page takes turns", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, H2O>;
  PolicyConfig<PolicyOf<P>> policy = heavy<P>(100, 20);
  policy.num_pages = 2 * kv_heads * 5 + 1;
  Single<PerHead, P> twin(small_config(dim), policy);
  twin.fill(300);
  twin.observe_newest();
  twin.evict();
  REQUIRE(twin.host.cache.memory_usage().pages_free == 1);
  REQUIRE(twin.device.plan_compact(twin.id)->pages_needed == 1);
  REQUIRE(twin.compact(twin.id, false).ok());
  REQUIRE(twin.difference(1) == "");
  CHECK(twin.host.cache.memory_usage().pages_free == 1 + 2 * kv_heads * 2);
}

TEST_CASE("compactions that are refused on the device", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Rough, H2O>;
  PolicyConfig<PolicyOf<P>> policy = heavy<P>(100, 20);
  policy.num_pages = 2 * 5 + 1;  // the newest block lies in the tail
  Single<PagedLayout<>, P> twin(small_config(dim), policy);
  twin.fill(330);
  twin.observe_newest();
  twin.evict();
  auto& cache = twin.device;
  CHECK(twin.compact(twin.id, false).status().code == StatusCode::would_be_lossy);
  CHECK(twin.difference(1) == "");
  CHECK(cache.compact({2, 0}, nullptr, true).status().code == StatusCode::stale_sequence);

  const StepPart part{twin.id, 1};
  REQUIRE(cache.begin_step({&part, 1}, nullptr).ok());
  CHECK(cache.compact(twin.id, nullptr, true).status().code == StatusCode::wrong_phase);
  REQUIRE(cache.abandon_step(nullptr).ok());

  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cache.compact(twin.id, stream, true).status().code == StatusCode::wrong_phase);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);

  // Shared pages do not come back, so one spare page is too little.
  const SequenceId twice = twin.fork();
  REQUIRE(twin.difference(2) == "");
  CHECK(cache.compact(twin.id, nullptr, true).status().code == StatusCode::no_free_pages);
  CHECK(twin.difference(2) == "");
  REQUIRE(twin.host.cache.release(twice).ok());
  REQUIRE(cache.release(twice, nullptr).ok());

  // A NaN that the host has not seen.
  TwinInputs in(twin.random, twin.shape(0), 1, Scalar::f32);
  REQUIRE(cache.begin_step({&part, 1}, nullptr).ok());
  REQUIRE(cache.append(0, in.on_device(), nullptr).ok());
  in.keys.put(0, 1, 2, NAN);
  in.keys.send();
  REQUIRE(cache.append(1, in.on_device(), nullptr).ok());
  REQUIRE(cache.commit_step(nullptr).ok());
  CHECK(cache.compact(twin.id, nullptr, true).status().code == StatusCode::wrong_phase);
  CHECK(cache.recover(twin.id, nullptr).code == StatusCode::not_finite);
  REQUIRE(twin.compact(twin.id, true).ok());
  CHECK(twin.masks_agree(twin.id));
}

TEST_CASE("compactions in a stream, with a pinned mirror", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Fp8, H2O>;
  Pair<P, PerHead> pair(small_config(dim), heavy<P>(150, 30));
  const SequenceId ids[] = {pair.create(), pair.create()};
  for (const SequenceId id : ids) {
    pair.fill(id, 500, 70);
    const StepPart newest{id, 1};
    for (int layer = 0; layer < 2; ++layer) {
      REQUIRE(pair.observe(pair.random, layer, {&newest, 1}).ok());
    }
    REQUIRE(pair.host.cache.evict(id).ok());
  }
  auto& host = pair.host;
  const auto plan = decltype(pair.device)::plan(host.config, host.policies);
  const DeviceBytes pages(plan->pages_bytes), tails(plan->tails_bytes), state(plan->state_bytes);
  void* mirror = nullptr;
  REQUIRE(cudaMallocHost(&mirror, plan->mirror_bytes) == cudaSuccess);
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  {
    auto cache =
        decltype(pair.device)::create_from(host.config, host.buffers.view(),
                                           {pages.span(),
                                            tails.span(),
                                            state.span(),
                                            {static_cast<std::byte*>(mirror), plan->mirror_bytes}},
                                           stream, host.policies);
    REQUIRE(cache.ok());
    for (const SequenceId id : ids) REQUIRE(cache->compact(id, stream).ok());
    for (const SequenceId id : ids) REQUIRE(pair.host.cache.compact(id).ok());
    const OwnedBuffers copy{host.cache.memory_plan()};
    REQUIRE(cache->copy_to(copy.view(), stream).ok());
    auto back = decltype(pair.host.cache)::attach(host.config, copy.view(), host.policies);
    REQUIRE(back.ok());
    for (const SequenceId id : ids) {
      std::vector<std::byte> own(*back->saved_bytes(id)), expected(*host.cache.saved_bytes(id));
      REQUIRE(back->save(id, 1, own).ok());
      REQUIRE(host.cache.save(id, 1, expected).ok());
      CHECK(own == expected);
    }
  }
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
  REQUIRE(cudaFreeHost(mirror) == cudaSuccess);
}

TEST_CASE("attention and steps after a compaction", "[cuda][compact]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int4Rotated, H2O>;
  Pair<P> pair(1, heavy<P>(150, 30));
  const SequenceId a = pair.create(), b = pair.create();
  pair.fill(a, 700, 128);
  pair.fill(b, 500, 128);
  const StepPart newest{a, 1};
  for (int turn = 0; turn < 2; ++turn) {
    REQUIRE(pair.observe(pair.random, 0, {&newest, 1}).ok());
    REQUIRE(*pair.device.evict(a, 0, nullptr) == *pair.host.cache.evict(a));
    REQUIRE(*pair.compact(a, false) > 0);
    check_attention(pair, {{a, 1}, {b, 1}});
    pair.fill(a, 750 + 100 * turn, 50);
    REQUIRE(pair.difference(2) == "");
    check_attention(pair, {{a, 1}, {b, 1}});
  }
}
