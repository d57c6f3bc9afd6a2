/// Random calls on a cache of the host and one of the device: the same handles, tables and bytes.
#include "cuda/twin.cuh"
#include "support/catch.hpp"

/// Encodes whole blocks in a way that no kernel knows: bf16, tokens backwards.
struct BackwardsCodec {
  static constexpr terse::Granularity granularity = terse::Granularity::per_channel;
  TERSE_HOST_DEVICE static constexpr terse::Record record(terse::Side, int width) noexcept {
    terse::Record r;
    r.add(static_cast<std::size_t>(width) * terse::block_tokens * 2);
    return r;
  }
  TERSE_HOST_DEVICE static std::byte* place(const terse::CodecContext& context, std::byte* block,
                                            int token, int channel) noexcept {
    return block + ((terse::block_tokens - 1 - token) * context.width + channel) * 2;
  }
  TERSE_HOST_DEVICE static void encode_block(const terse::CodecContext& context, const float* x,
                                             std::byte* block) noexcept {
    for (int t = 0; t < terse::block_tokens; ++t) {
      for (int c = 0; c < context.width; ++c) {
        const terse::BF16 b = terse::to_bf16(x[t * context.width + c]);
        std::memcpy(place(context, block, t, c), &b, 2);
      }
    }
  }
  TERSE_HOST_DEVICE static float decode(const terse::CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    terse::BF16 b;
    std::memcpy(&b, place(context, const_cast<std::byte*>(block), token, channel), 2);
    return terse::to_float(b);
  }
};

/// As BackwardsCodec, and token by token too, with other bits: a host seals whole blocks.
struct TwoWayCodec : BackwardsCodec {
  static constexpr terse::Granularity granularity = terse::Granularity::per_token;
  TERSE_HOST_DEVICE static void encode_token(const terse::CodecContext& context, const float* x,
                                             int token, std::byte* block) noexcept {
    for (int c = 0; c < context.width; ++c) {
      const terse::BF16 b = terse::to_bf16(-x[c]);
      std::memcpy(place(context, block, token, c), &b, 2);
    }
  }
};

/// Encodes token by token in a basis of its own: channels reversed.
struct ReversedCodec {
  static constexpr terse::Granularity granularity = terse::Granularity::per_token;
  TERSE_HOST_DEVICE static constexpr terse::Record record(terse::Side, int width) noexcept {
    terse::Record r;
    r.add(static_cast<std::size_t>(width) * terse::block_tokens * 4);
    return r;
  }
  TERSE_HOST_DEVICE static void to_basis(const terse::CodecContext& context, float* x) noexcept {
    for (int c = 0; c < context.width / 2; ++c) {
      const float other = x[context.width - 1 - c];
      x[context.width - 1 - c] = x[c];
      x[c] = other;
    }
  }
  TERSE_HOST_DEVICE static void from_basis(const terse::CodecContext& context, float* x) noexcept {
    to_basis(context, x);
  }
  TERSE_HOST_DEVICE static void encode_token(const terse::CodecContext& context, const float* x,
                                             int token, std::byte* block) noexcept {
    std::memcpy(block + token * context.width * 4, x, static_cast<std::size_t>(context.width) * 4);
  }
  TERSE_HOST_DEVICE static float decode(const terse::CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    float x;
    std::memcpy(&x, block + (token * context.width + channel) * 4, 4);
    return x;
  }
};

/// Beyond a budget, kills tokens here and there with a plain loop, which on the device all threads
/// run.
struct Thinned {
  struct Params {
    int budget_tokens = 8;
    [[nodiscard]] static terse::Status validate() { return {}; }
  };
  static constexpr bool scatters = true;

  // [select]
  TERSE_OF_EITHER_PROCESSOR
  template <class Tokens>
  TERSE_HOST_DEVICE static void select(Tokens& tokens, const Params& params,
                                       const terse::SelectContext& context) {
    if (tokens.size() + context.incoming_tokens <= params.budget_tokens) return;
    for (int i = 0; i < tokens.size(); ++i) {
      if (tokens.position(i) * 7919 % 4 < 2) tokens.kill(i);
    }
  }
  // [select]
};

using namespace terse;
using namespace terse::tests;

namespace {

using PerHead = PagedLayout<HeadPaging::per_head>;
using Kivi2R64 = Kivi<KiviSpec{.bits = 2, .group_channels = 16, .residual_tokens = 64}>;
using WideKeys = AffineGroup<AffineSpec{
    .bits = 2, .granularity = Granularity::per_channel, .group = 64, .rule = ScaleRule::min_max}>;

/// Codes share bytes with those of other tokens.
using ThreeBits = AffineGroup<AffineSpec{.bits = 3, .rule = ScaleRule::least_squares}>;
using SearchedKeys = AffineGroup<AffineSpec{.bits = 4,
                                            .granularity = Granularity::per_channel,
                                            .group = 32,
                                            .rule = ScaleRule::least_squares}>;

constexpr LayerPlace shared_slots[] = {{0, 0}, {1, 0}, {0, 0}};

CacheConfig twin_config(int head_dim, int max_step_tokens = 70) {
  return {.num_layers = 3,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = head_dim,
          .max_sequences = 3,
          .max_tokens = 512,
          .max_step_tokens = max_step_tokens,
          .layers = shared_slots};
}

template <Layout L, class P>
void run(std::uint64_t seed, int head_dim, PolicyConfig<PolicyOf<P>> policy = {},
         int operations = 150) {
  const CacheConfig config = twin_config(head_dim);
  if constexpr (L::paged) {  // so that some steps and forks are refused
    const auto plan = KVCache<L, P>::plan(config, {policy});
    policy.num_pages = plan->classes[0].shape.num_pages / 2;
  }
  Twin<L, P> twin(config, {policy});
  TwinRun<Twin<L, P>> calls(twin, seed);
  REQUIRE(calls.go(operations) == "");
}

/// Steps of several whole blocks from dense rows, of as many streams as leave a thread block no
/// more than 256 threads, or of few.
template <Layout L, class P>
void run_prompts(int head_dim, const PolicyConfig<PolicyOf<P>>& policy = {}) {
  CacheConfig config = twin_config(head_dim, 200);
  config.num_query_heads = config.num_kv_heads = 8;
  Twin<L, P> twin(config, {policy});
  Random random(static_cast<std::uint64_t>(head_dim));
  std::vector<SequenceId> ids;
  for (int i = 0; i < config.max_sequences; ++i) {
    ids.push_back(*twin.host.cache.create_sequence());
    REQUIRE(*twin.device.create_sequence(nullptr) == ids.back());
  }
  constexpr int steps[][3] = {{200, 192, 64}, {7, 0, 0}, {0, 64, 0}, {150, 130, 200}};
  for (const auto& tokens : steps) {
    std::vector<StepPart> parts;
    int rows = 0;
    for (int i = 0; i < config.max_sequences; ++i) {
      if (tokens[i] == 0) continue;
      parts.push_back({ids[static_cast<std::size_t>(i)], tokens[i]});
      rows += tokens[i];
    }
    REQUIRE(twin.host.cache.begin_step(parts).ok());
    REQUIRE(twin.device.begin_step(parts, nullptr).ok());
    const bool is_odd = &tokens - steps < 2;
    for (const int layer : {0, 1}) {
      // bf16 may hold more than fp16 can: nearly every block of odd numbers does.
      const Scalar type = (layer == 0) == is_odd ? Scalar::f16 : Scalar::bf16;
      const Numbers numbers = is_odd ? Numbers::odd : Numbers::normal;
      REQUIRE(twin.append(random, layer, rows, type, numbers, true).ok());
    }
    REQUIRE(twin.difference(config.max_sequences) == "");
    REQUIRE(twin.host.cache.commit_step().ok());
    REQUIRE(twin.device.commit_step(nullptr).ok());
  }
}

}  // namespace

TEST_CASE("prompts of whole blocks on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run_prompts<ContiguousLayout, Identity>(64);
  run_prompts<ContiguousLayout, Identity>(128, {.tail = TailSpec{.sink_tokens = 5}});
  run_prompts<PagedLayout<>, Compose<Fp8, H2O>>(
      96, {.eviction = {
               .heavy_tokens = 5, .recent_tokens = 9, .normalise = H2O::Normalise::per_query}});
  run_prompts<PerHead, Int8>(96);
  run_prompts<PerHead, Int8>(256);
  run_prompts<PagedLayout<>, Q8_0>(64);
  run_prompts<PagedLayout<>, Kivi4>(64);
  run_prompts<PagedLayout<>, Kivi2>(128);
  run_prompts<PagedLayout<>, Kivi2>(256);
  run_prompts<PagedLayout<>, Kivi2>(80);
  run_prompts<PagedLayout<>, KeyValue<WideKeys, Int8>>(128, {.tail = TailSpec{.min_tokens = 1}});
  run_prompts<PagedLayout<>, KeyValue<WideKeys, Int8>>(32, {.tail = TailSpec{.min_tokens = 1}});
  run_prompts<PagedLayout<>, KeyValue<SearchedKeys, Q4_0>>(64, {.tail = TailSpec{.min_tokens = 1}});
  run_prompts<PagedLayout<>, TurboQuant3>(80);
  run_prompts<PagedLayout<>, NvFp4Rotated>(64);
}

TEST_CASE("16 and 8 bits on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<ContiguousLayout, Identity>(1, 64);
  run<ContiguousLayout, Identity>(2, 80, {.tail = TailSpec{.sink_tokens = 5}});
  run<PerHead, Int8>(4, 96);
  run<PagedLayout<>, Q8_0>(5, 64);
}

TEST_CASE("4 bits on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PerHead, Int4Rotated>(6, 128, {.tail = TailSpec{.sink_tokens = 4}});
  run<PerHead, Int4Rotated>(7, 80, {.tail = TailSpec{.min_tokens = 20, .sink_tokens = 16}});
  run<ContiguousLayout, Q4_0>(8, 96);
  run<PagedLayout<>, Kivi4>(9, 64);
}

TEST_CASE("3 bits on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Kivi3>(29, 128);
  run<ContiguousLayout, Kivi3>(30, 80);
  run<PerHead, ThreeBits>(31, 64, {.tail = TailSpec{.sink_tokens = 4}});
  run<PagedLayout<>, ThreeBits>(32, 80, {.tail = TailSpec{.min_tokens = 20}});
  run<ContiguousLayout, ThreeBits>(33, 20);
}

TEST_CASE("2 bits on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Kivi2>(10, 128);
  run<PagedLayout<>, Kivi2>(11, 256, {}, 60);
  run<ContiguousLayout, Kivi2R64>(12, 48);
  run<ContiguousLayout, Kivi2R64>(
      13, 16, {.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64, .sink_tokens = 3}});
}

TEST_CASE("keys and values of different kinds on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, KeyValue<WideKeys, Int8>>(14, 64, {.tail = TailSpec{.min_tokens = 1}});
  run<PagedLayout<>, KeyValue<Int8, Kivi2R64::value_codec>>(15, 100,
                                                            {.tail = TailSpec{.min_tokens = 1}});
  run<PagedLayout<>, KeyValue<SearchedKeys, Q4_0>>(24, 128, {.tail = TailSpec{.min_tokens = 1}},
                                                   60);
}

TEST_CASE("evictors' state on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Compose<Int8, H2O>>(
      17, 64, {.eviction = {.heavy_tokens = 60, .recent_tokens = 50, .sink_tokens = 3}});
  run<PagedLayout<>, Compose<Fp8, H2O>>(
      27, 128,
      {.eviction = {
           .heavy_tokens = 5, .recent_tokens = 9, .normalise = H2O::Normalise::per_query}});
  run<PerHead, Compose<Kivi2R64, AttentionGate>>(
      18, 32, {.eviction = {.threshold = 0.7f, .protected_tokens = 9, .sink_tokens = 2}});
  run<ContiguousLayout, Compose<Int4Rotated, SinkWindow>>(
      28, 64, {.eviction = {.sink_tokens = 4, .window_tokens = 40}});
}

TEST_CASE("levels of a table on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, TurboQuant3>(34, 128, {}, 60);
  run<PagedLayout<>, TurboQuant3>(35, 80, {.tail = TailSpec{.min_tokens = 20, .sink_tokens = 4}},
                                  60);
  run<PagedLayout<>, NvFp4Rotated>(36, 64, {}, 60);
  run<PagedLayout<>, NvFp4Rotated>(38, 40, {}, 60);  // half a group of channels is left over
}

TEST_CASE("codecs whose encoders no kernel knows on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, TurboQuantProd2>(37, 64, {}, 60);
  run<PagedLayout<>, KeyValue<BackwardsCodec, ReversedCodec>>(20, 24,
                                                              {.tail = TailSpec{.min_tokens = 1}});
  run<PagedLayout<>, TwoWayCodec>(25, 16, {.tail = TailSpec{.min_tokens = 1}}, 60);
}

TEST_CASE("latents on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Kivi2R64, PaluJoint>;
  constexpr int heads = 2, dim = 32;
  // 64 tokens of the wider ones take more shared memory than every device has.
  const int rank = GENERATE(48, 512);
  int device = 0, most = 0;
  REQUIRE(cudaGetDevice(&device) == cudaSuccess);
  REQUIRE(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
          cudaSuccess);
  if (rank == 512 && most < 160 * 1024) TERSE_SKIP("too little shared memory");
  const std::vector<float> up =
      Random(4).normals(static_cast<std::size_t>(heads * dim * rank), 0.2f);
  const ProjectionFactors factors[] = {{rank, rank, up.data(), up.data()},
                                       {rank, rank, up.data(), up.data()}};
  CacheConfig config = twin_config(dim);
  config.rope = {.rotary_dim = dim};
  PolicyConfig<PolicyOf<P>> policy;
  policy.factors = factors;
  Twin<PagedLayout<>, P> twin(config, {policy});
  TwinRun<Twin<PagedLayout<>, P>> calls(twin, 23);
  REQUIRE(calls.go(rank == 48 ? 150 : 60) == "");
}

TEST_CASE("two policy classes on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Schedule<Kivi2, Compose<Int8, H2O>>;
  constexpr LayerPlace places[] = {{0, 0}, {0, 1}, {1, 0}};
  CacheConfig config = twin_config(64);
  config.layers = places;
  KVCache<PagedLayout<>, P>::Configs policies;
  std::get<1>(policies).eviction = {.heavy_tokens = 20, .recent_tokens = 30};
  Twin<PagedLayout<>, P> twin(config, policies);
  TwinRun<Twin<PagedLayout<>, P>> calls(twin, 22);
  REQUIRE(calls.go(150) == "");
}

TEST_CASE("a user's evictor on host and device", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PerHead, Compose<Int8, Thinned>>(29, 16, {.eviction = {.budget_tokens = 30}});
}

TEST_CASE("changes that fill several journals", "[cuda][twin]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  CacheConfig config = twin_config(16, 256);
  config.num_layers = 40;
  config.num_query_heads = config.num_kv_heads = 8;
  config.layers = {};
  Twin<PerHead, Int8> twin(config);
  Random random(26);
  const SequenceId id = *twin.host.cache.create_sequence();
  REQUIRE(*twin.device.create_sequence(nullptr) == id);
  const StepPart part{id, 256};  // 40 slots of 8 rows of 4 blocks: over 1360 pages
  REQUIRE(twin.host.cache.begin_step({&part, 1}).ok());
  REQUIRE(twin.device.begin_step({&part, 1}, nullptr).ok());
  for (int layer = 0; layer < config.num_layers; ++layer) {
    REQUIRE(twin.append(random, layer, 256, Scalar::f16).ok());
  }
  REQUIRE(twin.host.cache.commit_step().ok());
  REQUIRE(twin.device.commit_step(nullptr).ok());
  REQUIRE(twin.difference(3) == "");
  REQUIRE(*twin.host.cache.fork(id) == *twin.device.fork(id, nullptr));
  REQUIRE(twin.difference(3) == "");
  REQUIRE(twin.host.cache.release(id).ok());
  REQUIRE(twin.device.release(id, nullptr).ok());
  REQUIRE(twin.difference(3) == "");
}
