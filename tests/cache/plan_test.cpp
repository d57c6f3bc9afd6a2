/// Buffer sizes and what is refused at creation.
#include <cstring>
#include <string>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Cache = KVCache<PagedLayout<>, Kivi2>;
using Streaming = KVCache<PagedLayout<>, Compose<Int8, StreamingLLM>>;
using Latent = KVCache<PagedLayout<>, PaluJoint>;

CacheConfig small() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 300,
          .max_step_tokens = 8};
}

template <class C>
void refuses(const CacheConfig& config, const typename C::Configs& policies, StatusCode code,
             const std::string& words) {
  const Status status = C::supports(config, policies);
  INFO(status.text);
  CHECK(status.code == code);
  CHECK(std::string(status.text).find(words) != std::string::npos);
}

template <Layout L, class P>
void check_sizes(int tail_blocks) {
  const CacheConfig c = small();
  const MemoryPlan plan = *KVCache<L, P>::plan(c);
  const ClassShape& s = plan.classes[0].shape;
  const std::size_t unit = PolicyOf<P>::key_codec::record(Side::key, 64).bytes +
                           PolicyOf<P>::value_codec::record(Side::value, 64).bytes;
  CHECK(s.unit_bytes == unit);
  // 300 tokens fill 5 blocks; one more for a truncated sequence.
  CHECK(plan.pages_bytes == unit * 2u /*heads*/ * 2u /*slots*/ * 2u /*sequences*/ * 6u);
  CHECK(plan.tails_bytes ==
        static_cast<std::size_t>(tail_blocks) * 64 * 64 * 2 * 2 /*sides*/ * 2 * 2 * 2);
  CHECK(plan.classes[0].bits_per_element ==
        Approx(8.0 * static_cast<double>(unit) / (2 * 64 * 64)));
}

/// A cache over exactly `plan` bytes works; under AddressSanitizer any byte beyond is noticed.
template <Layout L, class P>
void fill_completely(const PolicyConfig<PolicyOf<P>>& policy = {}) {
  Driver<L, P> d(small(), policy);
  const SequenceId a = d.create(), b = d.create();
  REQUIRE(d.fill(a, 320, 8).ok());
  REQUIRE(d.fill(b, 320, 7).ok());
  for (const SequenceId s : {a, b}) {
    const Attended fast = d.attend(s, 8, Path::vectorised, {}, true);
    const Attended slow = d.attend(s, 8, Path::oracle, {}, true);
    REQUIRE(fast.status.ok());
    CHECK(relative_l2(fast.output, slow.output) < 1e-5);
  }
  REQUIRE(d.cache.evict(a).ok());
  REQUIRE(d.cache.compact(a, true).ok());
  REQUIRE(d.cache.truncate(b, 100).ok());
  for (int which = 0; which < 3; ++which) {
    Buffers view = d.buffers.view();
    Span<std::byte>& one = which == 0 ? view.pages : which == 1 ? view.tails : view.state;
    if (one.size() == 0) continue;
    one.count -= 1;
    const Status status = Driver<L, P>::Cache::create(d.config, view, d.policies).status();
    CHECK(status.code == StatusCode::buffer_too_small);
    CHECK(status.detail == static_cast<std::int64_t>(one.count + 1));
  }
}

}  // namespace

TEST_CASE("plan counts pages, tails and their padding exactly", "[cache][plan]") {
  check_sizes<PagedLayout<>, Identity>(0);
  check_sizes<ContiguousLayout, Int8>(0);
  check_sizes<PagedLayout<HeadPaging::per_head>, Int4Rotated>(0);
  check_sizes<PagedLayout<>, Kivi2>(3);  // 1 + 127 + 8 tokens
}

TEST_CASE("buffers of exactly the planned size are enough, one byte less is not", "[cache][plan]") {
  fill_completely<PagedLayout<>, Kivi2>({.tail = TailSpec{1, 128, 4}});
  fill_completely<ContiguousLayout, Compose<Int4Rotated, H2O>>();
  fill_completely<PagedLayout<HeadPaging::per_head>, Compose<Int8, H2O>>();
}

TEST_CASE("null and misaligned buffers are refused", "[cache][plan]") {
  const OwnedBuffers owned(*Cache::plan(small()));
  for (int which = 0; which < 3; ++which) {
    Buffers view = owned.view();
    Span<std::byte>& one = which == 0 ? view.pages : which == 1 ? view.tails : view.state;
    const Span<std::byte> whole = one;
    one = {nullptr, whole.size()};
    CHECK(Cache::create(small(), view).status().code == StatusCode::null_pointer);
    one = {whole.data() + 64, whole.size()};
    CHECK(Cache::create(small(), view).status().code == StatusCode::misaligned);
  }
}

TEST_CASE("configurations that cannot work say why", "[cache][plan]") {
  const auto bad = StatusCode::invalid_argument;
  for (int CacheConfig::*field :
       {&CacheConfig::num_layers, &CacheConfig::num_query_heads, &CacheConfig::num_kv_heads,
        &CacheConfig::head_dim, &CacheConfig::max_sequences, &CacheConfig::max_tokens,
        &CacheConfig::max_step_tokens}) {
    for (const int value : {0, -1}) {
      CacheConfig c = small();
      c.*field = value;
      refuses<Cache>(c, {}, bad, "must be positive");
    }
  }
  CacheConfig c = small();
  c.num_query_heads = 5;
  refuses<Cache>(c, {}, bad, "multiple of num_kv_heads");
  c = small();
  c.head_dim = 2048;
  refuses<Cache>(c, {}, StatusCode::unsupported, "limited to 1024");
  c = small();
  c.rope.rotary_dim = 66;
  refuses<Cache>(c, {}, bad, "rotary_dim");
  c = small();
  refuses<Streaming>(c, {}, bad, "set rope");
  c.rope.rotary_dim = 64;
  CHECK(Streaming::supports(c).ok());
  refuses<Streaming>(c, {{.eviction = {.sink_tokens = 4, .window_tokens = 0}}}, bad, "window");
  refuses<Cache>(small(), {{.tail = TailSpec{.min_tokens = -1}}}, bad, "min_tokens");
  refuses<Cache>(small(), {{.tail = TailSpec{.granule_tokens = 65}}}, bad, "multiple of 64");
  refuses<Cache>(small(), {{.tail = TailSpec{.sink_tokens = 17}}}, bad, "0..16");
  refuses<Cache>(small(), {{.num_pages = -1}}, bad, "num_pages");
  refuses<KVCache<PagedLayout<>, Int8>>(small(), {{.encodes_ahead = true}}, bad,
                                        "give the policy a longer tail");
  const TailSpec shortest{.min_tokens = 0, .granule_tokens = 64};
  refuses<Cache>(small(), {{.tail = shortest, .encodes_ahead = true}}, bad, "before it is due");
}

TEST_CASE("tails of 8 bits and room for codes are counted exactly", "[cache][plan]") {
  const auto tail_of = []<class P>(const PolicyConfig<P>& policy) {
    const auto plan = KVCache<PagedLayout<>, P>::plan(small(), {policy});
    REQUIRE(plan.ok());
    return plan->classes[0].shape;
  };
  const ClassShape exact = tail_of(PolicyConfig<Compose<Kivi2>>{});
  const ClassShape eight = tail_of(PolicyConfig<Compose<Kivi2, TailCodec<Int8>>>{});
  const ClassShape ahead = tail_of(PolicyConfig<Compose<Kivi2>>{.encodes_ahead = true});
  const auto width = static_cast<std::size_t>(exact.head_dim);
  CHECK(exact.tail_block_bytes == 2 * 64 * width * 2);
  CHECK(eight.tail_block_bytes == 2 * (64 * width + 64 * 2));  // codes, and a factor a token
  CHECK(eight.sink_bytes == exact.sink_bytes);
  CHECK(ahead.tail_block_bytes == exact.tail_block_bytes + ahead.unit_bytes + 128);  // two marks
  CHECK(eight.ring_blocks == exact.ring_blocks);
}

TEST_CASE("absurd shapes are refused before a size overflows", "[cache][plan]") {
  using Contiguous = KVCache<ContiguousLayout, Compose<Int8, H2O>>;
  using PerHead = KVCache<PagedLayout<HeadPaging::per_head>, Compose<Int4Rotated, H2O>>;
  const int most = 0x7fffffff;
  const auto refused = [](const CacheConfig& c, const std::string& words) {
    refuses<Cache>(c, {}, StatusCode::unsupported, words);
    refuses<Contiguous>(c, {}, StatusCode::unsupported, words);
    refuses<PerHead>(c, {}, StatusCode::unsupported, words);
  };
  const auto with = [](int CacheConfig::*field, int value) {
    CacheConfig c = small();
    c.*field = value;
    return c;
  };
  refused(with(&CacheConfig::num_layers, most), "num_layers is limited");
  refused(with(&CacheConfig::head_dim, most), "head_dim is limited");
  refused(with(&CacheConfig::max_tokens, most), "max_tokens to 2^30");
  refused(with(&CacheConfig::max_step_tokens, most), "max_step_tokens to 2^20");
  CacheConfig c = small();
  c.num_query_heads = c.num_kv_heads = most;
  refused(c, "num_query_heads to 2^12");
  c = small();
  c.max_sequences = most;
  c.max_tokens = 1 << 30;
  refused(c, "exceed 2^48 bytes");
  c = {.num_layers = 1 << 16,
       .num_query_heads = 1 << 12,
       .num_kv_heads = 1 << 12,
       .head_dim = 1024,
       .max_sequences = most,
       .max_tokens = 1 << 30,
       .max_step_tokens = 1 << 20};
  refused(c, "exceed 2^48 bytes");
  c = small();
  c.num_query_heads = 1 << 12;
  c.max_step_tokens = 1 << 20;
  refused(c, "2^31 numbers");
  refuses<Cache>(small(), {{.tail = TailSpec{.min_tokens = most}}}, StatusCode::unsupported,
                 "limited to 2^20");
  refuses<Cache>(small(), {{.tail = TailSpec{.granule_tokens = most / 64 * 64}}},
                 StatusCode::unsupported, "limited to 2^20");
  c = small();
  c.num_query_heads = c.num_kv_heads = 1 << 12;
  c.head_dim = 1024;
  refuses<Cache>(c, {{.num_pages = most}}, StatusCode::unsupported, "pages would exceed");
}

TEST_CASE("layer maps are checked", "[cache][plan]") {
  using Two = KVCache<PagedLayout<>, Schedule<Int8, Kivi2>>;
  CacheConfig c = small();
  const LayerPlace one[] = {{0, 0}};
  c.layers = one;
  refuses<Cache>(c, {}, StatusCode::invalid_argument, "one place per layer");
  const LayerPlace out_of_range[] = {{0, 0}, {2, 0}};
  c.layers = out_of_range;
  refuses<Cache>(c, {}, StatusCode::invalid_argument, "out of range");
  const LayerPlace no_such_class[] = {{0, 0}, {0, 1}};
  c.layers = no_such_class;
  refuses<Cache>(c, {}, StatusCode::invalid_argument, "out of range");
  CHECK(Two::supports(c).ok());
  const LayerPlace gap[] = {{1, 0}, {1, 0}};
  c.layers = gap;
  refuses<Cache>(c, {}, StatusCode::invalid_argument, "without gaps");
  const LayerPlace unused_class[] = {{0, 0}, {1, 0}};
  c.layers = unused_class;
  refuses<Two>(c, {}, StatusCode::invalid_argument, "serves no layer");
}

TEST_CASE("factors of latents are checked", "[cache][plan]") {
  const std::vector<float> up(2 * 64 * 32);
  ProjectionFactors good{32, 32, up.data(), up.data()};
  const auto with = [](ProjectionFactors a, ProjectionFactors b, auto&& f) {
    const ProjectionFactors both[] = {a, b};
    f(Latent::Configs{{.factors = both}});
  };
  refuses<Latent>(small(), {}, StatusCode::invalid_argument, "factors for every slot");
  with(good, good, [](const auto& p) { CHECK(Latent::supports(small(), p).ok()); });
  ProjectionFactors bad = good;
  bad.key_up = nullptr;
  with(good, bad, [](const auto& p) {
    refuses<Latent>(small(), p, StatusCode::null_pointer, "a factor is null");
  });
  bad = good;
  bad.value_rank = 0;
  with(bad, bad,
       [](const auto& p) { refuses<Latent>(small(), p, StatusCode::invalid_argument, "1..4096"); });
  bad = good;
  bad.key_rank = 16;
  with(good, bad, [](const auto& p) {
    refuses<Latent>(small(), p, StatusCode::invalid_argument, "equal ranks");
  });
}
