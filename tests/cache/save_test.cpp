/// Saving and loading of sequences: what is restored, and what is refused.
#include <cstring>
#include <vector>

#include "support/cache_fixture.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace terse::tests {
namespace {

constexpr std::uint64_t model = 0x5eed;

template <Layout L, class Policy>
class SavingCache {
 public:
  using Cache = KVCache<L, Policy>;
  using Configs = typename Cache::Configs;

  explicit SavingCache(const Configs& policies = {}, std::int64_t num_pages = 0)
      : SavingCache(config(), with_pages(policies, num_pages)) {}
  SavingCache(const CacheConfig& config, const Configs& policies)
      : fixture(config, policies), random(11) {}

  static CacheConfig config(int max_tokens = 256, int max_step_tokens = 4) {
    return {.num_layers = 2,
            .num_query_heads = 4,
            .num_kv_heads = 2,
            .head_dim = 16,
            .max_sequences = 3,
            .max_tokens = max_tokens,
            .max_step_tokens = max_step_tokens,
            .rope = {.rotary_dim = 16}};
  }
  static Configs with_pages(Configs policies, std::int64_t num_pages) {
    std::get<0>(policies).num_pages = num_pages;
    return policies;
  }

  void grow(SequenceId sequence, int steps) {
    for (int i = 0; i < steps; ++i) {
      const StepPart part{sequence, 3};
      REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
      for (int layer = 0; layer < 2; ++layer) {
        const std::vector<float> k = random.normals(96), v = random.normals(96);
        REQUIRE(fixture.cache
                    .append(layer, {HeadRows::dense(k.data(), Scalar::f32, 2, 16),
                                    HeadRows::dense(v.data(), Scalar::f32, 2, 16),
                                    {}})
                    .ok());
      }
      REQUIRE(fixture.cache.commit_step().ok());
      REQUIRE(fixture.cache.evict(sequence).ok());
    }
  }
  std::vector<std::byte> saved(SequenceId sequence) {
    const auto bytes = fixture.cache.saved_bytes(sequence);
    REQUIRE(bytes.ok());
    std::vector<std::byte> out(*bytes);
    REQUIRE(fixture.cache.save(sequence, model, {out.data(), out.size()}).ok());
    return out;
  }
  std::vector<float> attention(SequenceId sequence, int layer) {
    const std::vector<float> q = Random(3).normals(64);
    const StepPart part{sequence, 1};
    const Attended a = run_attend(fixture.cache.layer(layer), {&part, 1}, q, Path::vectorised);
    REQUIRE(a.status.ok());
    return a.output;
  }

  CacheFixture<L, Policy> fixture;
  Random random;
};

Span<const std::byte> view(const std::vector<std::byte>& bytes) {
  return {bytes.data(), bytes.size()};
}

template <Layout L, class Policy>
void check_round_trip(const typename KVCache<L, Policy>::Configs& policies = {}) {
  SavingCache<L, Policy> from(policies), to(policies);
  const auto sequence = from.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  from.grow(*sequence, 50);
  const std::vector<std::byte> bytes = from.saved(*sequence);

  const auto loaded = to.fixture.cache.load(view(bytes), model);
  REQUIRE(loaded.ok());
  CHECK(*to.fixture.cache.length(*loaded) == 150);
  for (int layer = 0; layer < 2; ++layer) {
    CHECK(to.attention(*loaded, layer) == from.attention(*sequence, layer));
  }
  CHECK(to.saved(*loaded) == bytes);
  // Both go on in the same way.
  to.random = from.random;
  from.grow(*sequence, 25);
  to.grow(*loaded, 25);
  CHECK(to.saved(*loaded) == from.saved(*sequence));
  REQUIRE(to.fixture.cache.release(*loaded).ok());
  CHECK(to.fixture.cache.memory_usage().pages_held == 0);
}

using Evicting = Compose<Int4Rotated, H2O>;
using Streaming = Compose<Kivi2, StreamingLLM>;

TEST_CASE("a loaded sequence is the saved one and goes on like it") {
  check_round_trip<PagedLayout<>, Identity>();
  check_round_trip<ContiguousLayout, Int8>();
  check_round_trip<PagedLayout<>, Kivi3>();
  check_round_trip<PagedLayout<>, Kivi4>();
  check_round_trip<PagedLayout<HeadPaging::per_head>, Evicting>(
      {PolicyConfig<Evicting>{.eviction = {.heavy_tokens = 20, .recent_tokens = 20}}});
  check_round_trip<PagedLayout<>, Streaming>(
      {PolicyConfig<Streaming>{.eviction = {.sink_tokens = 4, .window_tokens = 70}}});
}

TEST_CASE("any damaged byte is noticed, and nothing changes") {
  SavingCache<PagedLayout<>, Kivi2> cache;
  const auto sequence = cache.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  cache.grow(*sequence, 45);
  const std::vector<std::byte> bytes = cache.saved(*sequence);
  const MemoryUsage before = cache.fixture.cache.memory_usage();
  for (std::size_t i = 0; i < bytes.size(); i += i < 200 ? 1 : 97) {
    std::vector<std::byte> damaged = bytes;
    damaged[i] ^= std::byte{0x10};
    CHECK(!cache.fixture.cache.load(view(damaged), model).ok());
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, std::size_t{47}, std::size_t{48},
                                 std::size_t{60}, bytes.size() - 1}) {
    const Status status = cache.fixture.cache.load({bytes.data(), size}, model).status();
    CHECK(status.code == StatusCode::corrupt_data);
  }
  CHECK(cache.fixture.cache.memory_usage().pages_held == before.pages_held);
  CHECK(cache.saved(*sequence) == bytes);
}

/// `bytes` of a single-class file with `change` made to its payload and all checksums renewed.
template <class F>
std::vector<std::byte> forged(std::vector<std::byte> bytes, F&& change) {
  std::byte* payload = bytes.data() + sizeof(detail::SaveHeader) + sizeof(detail::ClassHeader);
  change(payload);
  detail::ClassHeader own;
  std::memcpy(&own, bytes.data() + sizeof(detail::SaveHeader), sizeof own);
  own.checksum = detail::fingerprint(payload, static_cast<std::size_t>(own.payload_bytes));
  std::memcpy(bytes.data() + sizeof(detail::SaveHeader), &own, sizeof own);
  return bytes;
}

TEST_CASE("a forged file whose checksums fit is refused for what it claims") {
  SavingCache<PagedLayout<>, Int8> cache;
  const auto sequence = cache.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  cache.grow(*sequence, 45);  // 135 tokens: two sealed blocks and an open one
  const std::vector<std::byte> bytes = cache.saved(*sequence);
  const auto& shape = cache.fixture.cache.memory_plan().classes[0].shape;
  const std::size_t first_live =
      sizeof(GridRecord) + sizeof(std::int32_t) + 3 * (1 + shape.page_bytes);
  const std::size_t first_position = first_live + 3 * sizeof(std::uint64_t);
  const auto put = [](std::byte* at, auto value) { std::memcpy(at, &value, sizeof value); };
  const auto status = [&](auto&& change) {
    return cache.fixture.cache.load(view(forged(bytes, change)), model).status().code;
  };
  CHECK(status([](std::byte*) {}) == StatusCode::ok);
  CHECK(status([&](std::byte* p) { put(p, std::int64_t{-64}); }) == StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { put(p + 8, std::int64_t{64}); }) == StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { put(p + 16, std::int64_t{7}); }) == StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { put(p + sizeof(GridRecord), std::int32_t{0}); }) ==
        StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { p[sizeof(GridRecord) + 4] = std::byte{0}; }) ==
        StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { put(p + first_live + 16, ~std::uint64_t{0}); }) ==
        StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { put(p + first_position + 4, std::int32_t{200}); }) ==
        StatusCode::corrupt_data);
  // A block that begins among the live tokens of the one before it.
  CHECK(status([&](std::byte* p) { put(p + first_position + 4, std::int32_t{10}); }) ==
        StatusCode::corrupt_data);
  CHECK(status([&](std::byte* p) { put(p + first_position + 8, std::int32_t{129}); }) ==
        StatusCode::corrupt_data);
}

TEST_CASE("a new sequence holds nothing of the one before it") {
  SavingCache<PagedLayout<>, Kivi2> used, fresh;
  const auto old = used.fixture.cache.create_sequence();
  REQUIRE(old.ok());
  used.grow(*old, 40);
  REQUIRE(used.fixture.cache.release(*old).ok());
  const auto a = used.fixture.cache.create_sequence();
  const auto b = fresh.fixture.cache.create_sequence();
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  used.random = fresh.random = Random(9);
  used.grow(*a, 2);
  fresh.grow(*b, 2);
  CHECK(used.saved(*a) == fresh.saved(*b));
}

TEST_CASE("a new sequence holds no evictor state of the one before it") {
  using P = Compose<Int8, H2O>;
  SavingCache<PagedLayout<>, P> used, fresh;
  const auto old = used.fixture.cache.create_sequence();
  REQUIRE(old.ok());
  used.grow(*old, 40);
  const StepPart part{*old, 1};
  const std::vector<float> sums(used.fixture.cache.column_sum_floats(0), 123.0f);
  REQUIRE(used.fixture.cache.observe(0, {&part, 1}, {sums.data(), sums.size()}).ok());
  REQUIRE(used.fixture.cache.release(*old).ok());
  const auto a = used.fixture.cache.create_sequence();
  const auto b = fresh.fixture.cache.create_sequence();
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  used.random = fresh.random = Random(9);
  used.grow(*a, 2);
  fresh.grow(*b, 2);
  CHECK(used.saved(*a) == fresh.saved(*b));
}

TEST_CASE("bytes of another model, policy or shape are refused by name") {
  SavingCache<PagedLayout<>, Kivi2> cache;
  const auto sequence = cache.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  cache.grow(*sequence, 30);
  const std::vector<std::byte> bytes = cache.saved(*sequence);
  CHECK(cache.fixture.cache.load(view(bytes), model + 1).status().code == StatusCode::mismatch);
  SavingCache<PagedLayout<>, Kivi4> other_policy;
  CHECK(other_policy.fixture.cache.load(view(bytes), model).status().code == StatusCode::mismatch);
  SavingCache<PagedLayout<>, Compose<Kivi2, TailCodec<Int8>>> other_tail_codec;
  CHECK(other_tail_codec.fixture.cache.load(view(bytes), model).status().code ==
        StatusCode::mismatch);
  SavingCache<ContiguousLayout, Kivi2> other_layout;
  CHECK(other_layout.fixture.cache.load(view(bytes), model).status().code == StatusCode::mismatch);
  using Saving = SavingCache<PagedLayout<>, Kivi2>;
  Saving other_tails(Saving::config(256, 200), {});
  CHECK(other_tails.fixture.cache.load(view(bytes), model).status().code == StatusCode::mismatch);
}

TEST_CASE("an intact sequence that is too long for a cache is refused for that") {
  using Saving = SavingCache<PagedLayout<>, Int8>;
  Saving cache, shorter(Saving::config(64), {});
  const auto sequence = cache.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  cache.grow(*sequence, 50);  // 150 tokens: three blocks
  const std::vector<std::byte> bytes = cache.saved(*sequence);
  const Status status = shorter.fixture.cache.load(view(bytes), model).status();
  CHECK(status.code == StatusCode::too_many_tokens);
  CHECK(status.detail == 3);
}

TEST_CASE("a pool without room refuses before anything is taken") {
  SavingCache<PagedLayout<>, Int8> from;
  const auto sequence = from.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  from.grow(*sequence, 60);  // 180 tokens: 3 pages in each of 2 slots
  const std::vector<std::byte> bytes = from.saved(*sequence);
  SavingCache<PagedLayout<>, Int8> small({}, 5);
  const Status status = small.fixture.cache.load(view(bytes), model).status();
  CHECK(status.code == StatusCode::no_free_pages);
  CHECK(status.detail == 1);
  CHECK(small.fixture.cache.memory_usage().pages_free == 5);
  SavingCache<PagedLayout<>, Int8> enough({}, 6);
  CHECK(enough.fixture.cache.load(view(bytes), model).ok());
}

TEST_CASE("save needs the bytes that saved_bytes names") {
  SavingCache<PagedLayout<>, Int8> cache;
  const auto sequence = cache.fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  cache.grow(*sequence, 5);
  std::vector<std::byte> out(*cache.fixture.cache.saved_bytes(*sequence) - 1);
  CHECK(cache.fixture.cache.save(*sequence, model, {out.data(), out.size()}).code ==
        StatusCode::buffer_too_small);
}

}  // namespace
}  // namespace terse::tests
