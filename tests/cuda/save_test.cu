/// Saved sequences that go from one processor to the other, and what is refused.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "terse/cache/saved_format.hpp"

#include "cuda/cache_pair.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using PerHead = PagedLayout<HeadPaging::per_head>;
using Heavy = Compose<Int8, H2O>;
using Rough = Kivi<KiviSpec{.bits = 2, .group_channels = 16, .residual_tokens = 64}>;
using Bytes = std::vector<std::byte>;

template <class P>
PolicyConfig<PolicyOf<P>> heavy_budget() {
  PolicyConfig<PolicyOf<P>> policy;
  policy.eviction = {.heavy_tokens = 60, .recent_tokens = 40};
  return policy;
}

/// Loads into both caches, which must say the same.
template <class P, Layout L>
Expected<SequenceId> load(Pair<P, L>& pair, const Bytes& bytes, std::uint64_t model = 1) {
  const auto a = pair.host.cache.load(bytes, model);
  auto b = pair.device.load(bytes, model, nullptr);
  REQUIRE(b.status().code == a.status().code);
  REQUIRE(b.status().detail == a.status().detail);
  if (a.ok()) REQUIRE(*a == *b);
  return b;
}

template <class P, Layout L>
void release(Pair<P, L>& pair, SequenceId id) {
  REQUIRE(pair.host.cache.release(id).ok());
  REQUIRE(pair.device.release(id, nullptr).ok());
}

/// Appends up to `length` tokens, observing and evicting after each step.
template <class P, Layout L>
void grow(Pair<P, L>& pair, SequenceId id, int length, int chunk = 37) {
  while (*pair.device.length(id) < length) {
    const StepPart part{id, std::min(chunk, length - static_cast<int>(*pair.device.length(id)))};
    pair.step({part});
    if constexpr (Pair<P, L>::evicts) {
      for (int layer = 0; layer < pair.host.config.num_layers; ++layer) {
        const Status s = pair.observe(pair.random, layer, {&part, 1});
        REQUIRE((s.ok() || s.code == StatusCode::unsupported));
      }
      const std::int64_t freed = *pair.host.cache.evict(id);
      REQUIRE(*pair.device.evict(id, 0, nullptr) == freed);
    }
  }
}

/// A sequence with a past is saved on both processors, loaded by both into caches where others
/// live, and goes on.
template <class P, Layout L = PagedLayout<>>
void check_round_trip(const CacheConfig& config,
                      const typename Pair<P, L>::Configs& policies = {}) {
  Pair<P, L> from(config, policies), to(config, policies);
  const SequenceId id = from.create();
  const Bytes empty = from.saved(id);
  REQUIRE(!empty.empty());
  grow(from, id, 460);
  REQUIRE(from.host.cache.truncate(id, 100).ok());  // so far back that exact copies are gone
  REQUIRE(from.device.truncate(id, 100, nullptr).ok());
  grow(from, id, 470);
  REQUIRE(from.compact(id, true).ok());
  grow(from, id, 507);
  const Bytes bytes = from.saved(id);
  REQUIRE(bytes.size() > empty.size());

  const SequenceId first = to.create(), second = to.create(), third = to.create();
  for (int i = 0; i < 9; ++i) to.step({{first, 7}, {second, 31}, {third, 20}});
  release(to, second);
  const auto loaded = load(to, bytes);
  REQUIRE(loaded.ok());
  CHECK(loaded->index == second.index);
  REQUIRE(to.difference(config.max_sequences) == "");
  CHECK(to.saved(*loaded) == bytes);
  to.random = from.random;
  grow(to, *loaded, 640, 60);
  grow(from, id, 640, 60);
  REQUIRE(to.difference(config.max_sequences) == "");
  const Bytes grown = to.saved(*loaded);
  CHECK(grown == from.saved(id));
  grow(to, first, 100);
  REQUIRE(to.difference(config.max_sequences) == "");
  CHECK(to.saved(*loaded) == grown);

  // Nothing of the sequence before it is left in an empty one.
  release(to, *loaded);
  const auto blank = load(to, empty);
  REQUIRE(blank.ok());
  CHECK(*to.device.length(*blank) == 0);
  CHECK(to.saved(*blank) == empty);
  grow(to, *blank, 70);
  REQUIRE(to.difference(config.max_sequences) == "");
}

/// Steps a sequence until an append has failed, unseen by the host, in layer 0.
template <class P>
void fail(Pair<P>& pair, SequenceId id) {
  const StepPart part{id, 1};
  TwinInputs in(pair.random, pair.shape(0), 1, Scalar::f32);
  in.values.put(0, 1, 2, NAN);
  in.values.send();
  REQUIRE(pair.device.begin_step({&part, 1}, nullptr).ok());
  REQUIRE(pair.device.append(0, in.on_device(), nullptr).ok());
  REQUIRE(pair.device.commit_step(nullptr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

}  // namespace

TEST_CASE("saved sequences between host and device", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check_round_trip<Heavy, PerHead>(config_of(2), heavy_budget<Heavy>());
  PolicyConfig<PolicyOf<Kivi2>> with_sinks;
  with_sinks.tail = TailSpec{.min_tokens = 70, .sink_tokens = 4};
  check_round_trip<Kivi2>(config_of(2), with_sinks);
  check_round_trip<Int8, ContiguousLayout>(config_of(2));
  using Streaming = Compose<Rough, StreamingLLM>;
  PolicyConfig<PolicyOf<Streaming>> window;
  window.eviction = {.sink_tokens = 4, .window_tokens = 90};
  CacheConfig turning = config_of(2);
  turning.rope = {.rotary_dim = dim};
  check_round_trip<Streaming>(turning, window);
}

TEST_CASE("saved sequences of two policy classes between host and device", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Schedule<Kivi2, Heavy>;
  constexpr LayerPlace places[] = {{0, 0}, {0, 1}, {1, 0}};
  CacheConfig config = config_of(3);
  config.layers = places;
  Pair<P>::Configs policies;
  std::get<1>(policies) = heavy_budget<Heavy>();
  check_round_trip<P>(config, policies);
}

TEST_CASE("saved latents between host and device", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Rough, PaluJoint>;
  constexpr int rank = 48;
  const std::vector<float> up = Random(4).normals(kv_heads * dim * rank, 0.2f);
  const ProjectionFactors factors[] = {{rank, rank, up.data(), up.data()},
                                       {rank, rank, up.data(), up.data()}};
  CacheConfig config = config_of(2);
  config.rope = {.rotary_dim = dim};
  PolicyConfig<PolicyOf<P>> policy;
  policy.factors = factors;
  check_round_trip<P>(config, policy);
}

TEST_CASE("damaged bytes are refused on the device, and nothing changes", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Heavy> pair(2, heavy_budget<Heavy>());
  const SequenceId id = pair.create(), other = pair.create();
  grow(pair, id, 150);
  grow(pair, other, 90);
  const Bytes bytes = pair.saved(id), before = pair.saved(other);
  REQUIRE(!bytes.empty());
  const std::int64_t free_pages = pair.device.memory_usage().pages_free;
  constexpr std::size_t headers = sizeof(detail::SaveHeader) + sizeof(detail::ClassHeader);
  for (std::size_t i = 0; i < bytes.size(); i += i < headers ? 1 : 9973) {
    Bytes damaged = bytes;
    damaged[i] ^= std::byte{0x10};
    CHECK(!load(pair, damaged).ok());
  }
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{8}, sizeof(detail::SaveHeader), headers, bytes.size() - 1}) {
    const Bytes part(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(load(pair, part).status().code == StatusCode::corrupt_data);
  }
  CHECK(load(pair, bytes, 2).status().code == StatusCode::mismatch);
  Pair<Kivi2> other_policy(2);
  CHECK(load(other_policy, bytes).status().code == StatusCode::mismatch);
  CHECK(pair.device.memory_usage().pages_free == free_pages);
  CHECK(pair.saved(other) == before);
  REQUIRE(pair.difference(4) == "");
  CHECK(load(pair, bytes).ok());
  REQUIRE(pair.difference(4) == "");
}

TEST_CASE("what finds no room is refused on the device", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Int8> from(2);
  const SequenceId id = from.create();
  grow(from, id, 180);  // 3 pages in each of 2 slots
  const Bytes bytes = from.saved(id);
  REQUIRE(!bytes.empty());
  PolicyConfig<PolicyOf<Int8>> policy;
  policy.num_pages = 11;
  Pair<Int8> small(2, policy);
  const auto only = load(small, bytes);
  REQUIRE(only.ok());
  const Status status = load(small, bytes).status();
  CHECK(status.code == StatusCode::no_free_pages);
  CHECK(status.detail == 1);
  CHECK(small.device.memory_usage().pages_free == 5);
  CHECK(small.saved(*only) == bytes);
  REQUIRE(small.difference(4) == "");
  CacheConfig config = config_of(2);
  config.max_tokens = 64;
  Pair<Int8> shorter(config);
  CHECK(load(shorter, bytes).status().code == StatusCode::too_many_tokens);
  for (int i = 1; i < 4; ++i) REQUIRE(load(from, bytes).ok());
  CHECK(load(from, bytes).status().code == StatusCode::too_many_sequences);
  REQUIRE(from.difference(4) == "");
}

TEST_CASE("a sequence is loaded into pages of the engine's on the device", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Int8> from(2);
  const SequenceId id = from.create();
  grow(from, id, 180);
  const Bytes bytes = from.saved(id);
  PolicyConfig<PolicyOf<Int8>> policy;
  policy.num_pages = 40;
  policy.borrows_pages = true;
  Pair<Int8> to(2, policy);
  CHECK(load(to, bytes).status().code == StatusCode::no_free_pages);
  const std::int32_t lent[] = {39, 3, 17, 0, 28, 9, 12, 33};
  REQUIRE(to.host.cache.lend_pages(lent).ok());
  REQUIRE(to.device.lend_pages(lent).ok());
  const auto loaded = load(to, bytes);
  REQUIRE(loaded.ok());
  REQUIRE(to.difference(4) == "");
  CHECK(to.saved(*loaded) == bytes);
  grow(to, *loaded, 200);
  REQUIRE(to.difference(4) == "");
}

TEST_CASE("saving and loading that is refused on the device", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(1);
  auto& cache = pair.device;
  const SequenceId id = pair.create(), stale{id.index, id.generation + 1};
  grow(pair, id, 200);
  Bytes bytes = pair.saved(id);
  REQUIRE(!bytes.empty());
  CHECK(cache.saved_bytes(stale).status().code == StatusCode::stale_sequence);
  CHECK(cache.save(stale, 1, bytes, nullptr).code == StatusCode::stale_sequence);
  CHECK(cache.save(id, 1, {bytes.data(), bytes.size() - 1}, nullptr).code ==
        StatusCode::buffer_too_small);
  CHECK(cache.save(id, 1, {}, nullptr).code == StatusCode::buffer_too_small);

  const StepPart part{id, 1};
  REQUIRE(cache.begin_step({&part, 1}, nullptr).ok());
  CHECK(cache.saved_bytes(id).status().code == StatusCode::wrong_phase);
  CHECK(cache.save(id, 1, bytes, nullptr).code == StatusCode::wrong_phase);
  CHECK(cache.load(bytes, 1, nullptr).status().code == StatusCode::wrong_phase);
  REQUIRE(cache.abandon_step(nullptr).ok());

  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cache.save(id, 1, bytes, stream).code == StatusCode::wrong_phase);
  CHECK(cache.load(bytes, 1, stream).status().code == StatusCode::wrong_phase);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
  REQUIRE(pair.difference(4) == "");
  CHECK(pair.saved(id) == bytes);
}

TEST_CASE("failed sequences are not saved, and leave nothing to those loaded", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(1);
  const SequenceId id = pair.create(), other = pair.create();
  grow(pair, id, 200);
  grow(pair, other, 100);
  const Bytes bytes = pair.saved(id), of_other = pair.saved(other);
  fail(pair, id);
  Bytes unused(*pair.device.saved_bytes(id));
  CHECK(pair.device.save(id, 1, unused, nullptr).code == StatusCode::wrong_phase);
  CHECK(pair.saved(other) == of_other);
  CHECK(pair.device.recover(id, nullptr).code == StatusCode::not_finite);
  // Places of the tail that nothing reads may hold what the failed step wrote, until its ring has
  // gone round.
  grow(pair, id, 600);
  CHECK_FALSE(pair.saved(id).empty());
  fail(pair, id);
  release(pair, id);
  const auto loaded = load(pair, bytes);
  REQUIRE(loaded.ok());
  CHECK(loaded->index == id.index);
  CHECK(pair.device.recover(*loaded, nullptr).ok());
  CHECK(pair.saved(*loaded) == bytes);
  grow(pair, *loaded, 300);
  REQUIRE(pair.difference(4) == "");
}

TEST_CASE("saving and loading in a stream, with pinned memory", "[cuda][save]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Heavy, PerHead> pair(2, heavy_budget<Heavy>());
  const SequenceId id = pair.create();
  grow(pair, id, 300);
  const Bytes bytes = pair.saved(id);
  REQUIRE(!bytes.empty());
  const auto& host = pair.host;
  using Device = cuda::KVCache<PerHead, Heavy>;
  const auto plan = *Device::plan(host.config, host.policies);
  const DeviceBytes pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes);
  std::byte *mirror = nullptr, *file = nullptr;
  REQUIRE(cudaMallocHost(&mirror, plan.mirror_bytes) == cudaSuccess);
  REQUIRE(cudaMallocHost(&file, bytes.size()) == cudaSuccess);
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  auto cache = Device::create(
      host.config, {pages.span(), tails.span(), state.span(), {mirror, plan.mirror_bytes}}, stream,
      host.policies);
  REQUIRE(cache.ok());
  std::memcpy(file, bytes.data(), bytes.size());
  const auto loaded = cache->load({file, bytes.size()}, 1, stream);
  REQUIRE(loaded.ok());
  std::memset(file, 0xff, bytes.size());
  CHECK(cache->save(*loaded, 1, {file, bytes.size()}, stream).ok());
  CHECK(std::memcmp(file, bytes.data(), bytes.size()) == 0);
  const StepPart ours{id, 90}, theirs{*loaded, 90};
  const TwinInputs in(pair.random, pair.shape(0), 90, Scalar::f16);
  REQUIRE(pair.host.cache.begin_step({&ours, 1}).ok());
  REQUIRE(cache->begin_step({&theirs, 1}, stream).ok());
  for (int layer = 0; layer < 2; ++layer) {
    REQUIRE(pair.host.cache.append(layer, in.on_host()).ok());
    REQUIRE(cache->append(layer, in.on_device(), stream).ok());
  }
  REQUIRE(pair.host.cache.commit_step().ok());
  REQUIRE(cache->commit_step(stream).ok());
  Bytes own(*cache->saved_bytes(*loaded)), expected(*pair.host.cache.saved_bytes(id));
  REQUIRE(cache->save(*loaded, 1, own, stream).ok());
  REQUIRE(pair.host.cache.save(id, 1, expected).ok());
  CHECK(own == expected);
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
  REQUIRE(cudaFreeHost(mirror) == cudaSuccess);
  REQUIRE(cudaFreeHost(file) == cudaSuccess);
}
