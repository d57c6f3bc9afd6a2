/// Latents on the device: keys rebuilt inside attention, values projected after it, or left as they
/// are; against the fp64 oracle.
#include <cmath>
#include <vector>

#include "cuda/columns_check.cuh"
#include "cuda/user_codec.cuh"
#include "support/projection_factors.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64>;  // latents have one kernel for all

/// A bf16 codec with a basis that is not Hadamard's: channels backwards, every other one negated.
struct MirroredCodec : UserCodec {
  TERSE_HOST_DEVICE static void to_basis(const CodecContext& context, float* x) noexcept {
    for (int a = 0, b = context.width - 1; a < b; ++a, --b) {
      const float y = x[a];
      x[a] = x[b];
      x[b] = y;
    }
    for (int c = 0; c < context.width; c += 2) x[c] = -x[c];
  }
  TERSE_HOST_DEVICE static void from_basis(const CodecContext& context, float* x) noexcept {
    for (int c = 0; c < context.width; c += 2) x[c] = -x[c];
    for (int a = 0, b = context.width - 1; a < b; ++a, --b) {
      const float y = x[a];
      x[a] = x[b];
      x[b] = y;
    }
  }
};

struct Shape {
  int query_heads = 8, kv_heads = 4, head_dim = 64;
  int key_rank, value_rank;
  RopePairing pairing = RopePairing::interleaved;
  int rotary_dim = 64;
  std::vector<int> lengths{1, 17, 129, 300};
};

CacheConfig config_of(const Shape& s) {
  CacheConfig c = device_config(s.query_heads, s.kv_heads, s.head_dim, 512);
  c.rope = {.pairing = s.pairing, .rotary_dim = s.rotary_dim};
  return c;
}

template <class P, Layout L = PagedLayout<>>
void check(const Shape& shape, PolicyConfig<PolicyOf<P>> policy = {}) {
  const Factors factors(shape.kv_heads, shape.head_dim, shape.key_rank, shape.value_rank);
  policy.factors = {&factors.view, 1};
  Driver<L, P> d(config_of(shape), policy);
  const SequenceId s = d.create();
  for (const int length : shape.lengths) {
    REQUIRE(d.fill(s, length, 100).ok());
    for (const int rows : {1, std::min(length, 11)}) {
      INFO("ranks " << shape.key_rank << " and " << shape.value_rank);
      check_rows<Dims>(d, s, rows);
      if (rows == 1) check_rows<Dims>(d, s, rows, {.latent_output = true});
      check_rows_columns<Dims>(d, s, rows);
      if (length == shape.lengths.back()) {
        check_row_types<Dims>(d, s, rows, {.latent_output = rows == 1});
      }
    }
    REQUIRE(d.cache.evict(s).ok());
  }
}

}  // namespace

TEST_CASE("latents over all heads, some heads and single heads on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check<PaluJoint>({.key_rank = 96, .value_rank = 160});
  check<PaluPerHead>({.key_rank = 48, .value_rank = 32});
  check<Palu<PaluSpec{.key_heads_per_group = 2, .value_heads_per_group = 4}>>(
      {.key_rank = 37, .value_rank = 51});
}

TEST_CASE("head dimensions, groups and rotations of latents on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  constexpr auto half_split = RopePairing::half_split;
  check<PaluJoint>({.query_heads = 32,
                    .kv_heads = 2,
                    .head_dim = 128,
                    .key_rank = 192,
                    .value_rank = 300,
                    .pairing = half_split,
                    .rotary_dim = 128});
  check<PaluJoint>({.query_heads = 3,
                    .kv_heads = 3,
                    .head_dim = 80,
                    .key_rank = 64,
                    .value_rank = 64,
                    .pairing = half_split,
                    .rotary_dim = 32});
  check<PaluPerHead>({.query_heads = 2,
                      .kv_heads = 1,
                      .head_dim = 256,
                      .key_rank = 100,
                      .value_rank = 20,
                      .rotary_dim = 256});
  for (const int head_dim : {36, 72}) {
    check<PaluPerHead>({.query_heads = 40,
                        .kv_heads = 1,
                        .head_dim = head_dim,
                        .key_rank = 30,
                        .value_rank = 44,
                        .pairing = half_split,
                        .rotary_dim = 20,
                        .lengths = {70}});
  }
  check<PaluPerHead>({.key_rank = 30, .value_rank = 44, .rotary_dim = 2, .lengths = {70}});
  // So wide that sums of 32 vectors do not fit.
  check<PaluJoint>({.key_rank = 64, .value_rank = 1400, .lengths = {70}});
}

TEST_CASE("quantised latents, exact sinks, and eviction on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check<Compose<PaluJoint, Int4Rotated>>({.key_rank = 160, .value_rank = 128},
                                         {.tail = TailSpec{.sink_tokens = 5}});
  check<Compose<Palu<PaluSpec{2, 2}>, Kivi2, StreamingLLM>>(
      {.key_rank = 64, .value_rank = 64},
      {.eviction = {.sink_tokens = 4, .window_tokens = 90}, .tail = TailSpec{1, 64, 4}});
  check<Compose<PaluPerHead, Int8, H2O>, ContiguousLayout>(
      {.key_rank = 32, .value_rank = 48}, {.eviction = {.heavy_tokens = 50, .recent_tokens = 30}});
  check<Compose<PaluJoint, StreamingLLM>>({.key_rank = 64, .value_rank = 64},
                                          {.eviction = {.sink_tokens = 70, .window_tokens = 90}});
}

TEST_CASE("latents of a codec with a basis of its own on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  check<Compose<PaluPerHead, MirroredCodec>>({.key_rank = 40, .value_rank = 24});
  // So wide that tokens are turned in parts.
  check<Compose<PaluPerHead, MirroredCodec>>(
      {.kv_heads = 2, .key_rank = 700, .value_rank = 132, .lengths = {1, 70}});
}

TEST_CASE("attend parameters with latents on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const Factors factors(4, 64, 96, 80);
  PolicyConfig<PolicyOf<PaluJoint>> policy{.factors = {&factors.view, 1}};
  Driver<PagedLayout<>, PaluJoint> d(config_of({.key_rank = 96, .value_rank = 80}), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 333, 100).ok());
  const std::vector<float> sinks(8, 1.5f);
  for (const AttendParams& p :
       {AttendParams{.softmax_scale = 0.05f}, AttendParams{.logit_soft_cap = 5.0f},
        AttendParams{.sliding_window_tokens = 150}, AttendParams{.sink_logits = sinks.data()},
        AttendParams{.causal = false}}) {
    check_rows<Dims>(d, s, 1, p);
    check_rows<Dims>(d, s, 40, p);
    check_rows_columns<Dims>(d, s, 3, p);
  }
}

TEST_CASE("sequences of a batch with latents on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const Factors factors(4, 64, 96, 80);
  using P = Compose<PaluPerHead, Int8, H2O>;
  PolicyConfig<PolicyOf<P>> policy{.factors = {&factors.view, 1}};
  policy.eviction = {.heavy_tokens = 50, .recent_tokens = 30};
  Driver<PagedLayout<HeadPaging::per_head>, P> d(config_of({.key_rank = 96, .value_rank = 80}),
                                                 policy);
  std::vector<StepPart> parts;
  for (const int length : {1, 200, 450}) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, length, 100).ok());
    parts.push_back({s, std::min(length, 3 * static_cast<int>(parts.size()) + 1)});
  }
  std::vector<float> queries;
  for (const StepPart& part : parts) {
    const auto own = query_rows(d.shape(), 5, d.length(part.sequence) - part.tokens, part.tokens);
    queries.insert(queries.end(), own.begin(), own.end());
  }
  check_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), {parts.data(), parts.size()},
                             queries);
  check_columns<Dims>(d.cache.layer(0), d.buffers.view(), {parts.data(), parts.size()}, queries);
}

TEST_CASE("many thread blocks share a head of latents on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const Factors factors(1, 64, 16, 24);
  PolicyConfig<PolicyOf<PaluPerHead>> policy{.factors = {&factors.view, 1}};
  CacheConfig config =
      config_of({.query_heads = 2, .kv_heads = 1, .key_rank = 16, .value_rank = 24});
  config.max_tokens = 66 * 64 + 5;
  Driver<PagedLayout<>, PaluPerHead> d(config, policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, config.max_tokens, 128).ok());
  check_rows<Dims>(d, s, 1);
  check_rows_columns<Dims>(d, s, 1);
  const StepPart part{s, 1};
  const auto run = [&] {
    return run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                               query_rows(d.shape(), 5, config.max_tokens - 1, 1));
  };
  CHECK(same_bits(run().output, run().output));
}

TEST_CASE("forks, truncated and compacted latents on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<PaluPerHead, Int8, H2O>;
  const Factors factors(4, 64, 32, 48);
  PolicyConfig<PolicyOf<P>> policy{.factors = {&factors.view, 1}};
  policy.eviction = {.heavy_tokens = 60, .recent_tokens = 60};
  Driver<PagedLayout<HeadPaging::per_head>, P> d(config_of({.key_rank = 32, .value_rank = 48}),
                                                 policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 100).ok());
  const auto twin = d.cache.fork(s);
  REQUIRE(twin.ok());
  REQUIRE(d.cache.evict(s).ok());
  REQUIRE(d.cache.compact(s, true).ok());
  check_rows<Dims>(d, s, 2);
  REQUIRE(d.cache.truncate(*twin, 222).ok());
  REQUIRE(d.fill(*twin, 290, 50).ok());
  check_rows<Dims>(d, *twin, 30);
}

TEST_CASE("parts of latents that hold nothing on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const Factors factors(4, 64, 32, 48);
  PolicyConfig<PolicyOf<PaluPerHead>> policy{.factors = {&factors.view, 1}};
  Driver<PagedLayout<>, PaluPerHead> d(config_of({.key_rank = 32, .value_rank = 48}), policy);
  const SequenceId full = d.create(), empty = d.create();
  REQUIRE(d.fill(full, 100, 100).ok());
  // The handle of a sequence that is gone, an index that there is not, and one without tokens.
  const std::vector<StepPart> parts{
      {{full.index, full.generation + 1}, 1}, {{77, 1}, 1}, {empty, 1}};
  const std::vector<float> queries = query_rows(d.shape(), 5, 0, 3);
  const std::vector<float> sinks(8, 1.5f);
  for (const bool has_sinks : {false, true}) {
    AttendParams params;
    if (has_sinks) params.sink_logits = sinks.data();
    const Attended seen = run_on_device<Dims>(d.cache.layer(0), d.buffers.view(),
                                              {parts.data(), parts.size()}, queries, params);
    REQUIRE(seen.status.ok());
    for (const float x : seen.output) CHECK(x == 0.0f);
    for (const float x : seen.lse_ln) CHECK(x == (has_sinks ? Approx(1.5f) : Approx(-INFINITY)));
  }
}

TEST_CASE("what attention to latents on the device refuses", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const auto code = [](const auto& d, SequenceId s, const AttendParams& params) {
    const StepPart part{s, 1};
    return run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                               query_rows(d.shape(), 5, 0, 1), params)
        .status.code;
  };
  const Factors factors(1, 64, 32, 32), wide(1, 64, 32, 4096);
  const Shape shape{.query_heads = 1, .kv_heads = 1, .key_rank = 32, .value_rank = 32};
  Driver<PagedLayout<>, PaluPerHead> d(config_of(shape), {.factors = {&factors.view, 1}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 1, 1).ok());
  CHECK(code(d, s, {}) == StatusCode::ok);
  CHECK(code(d, s, {.require_specialized = true}) == StatusCode::unsupported);
  // Sums of 4096 channels: 16 vectors of them take more than any device has, and column sums none.
  Driver<PagedLayout<>, PaluPerHead> e(config_of(shape), {.factors = {&wide.view, 1}});
  const SequenceId t = e.create();
  REQUIRE(e.fill(t, 70, 70).ok());
  CHECK(code(e, t, {}) == StatusCode::unsupported);
  check_rows_columns<Dims>(e, t, 1);
}

TEST_CASE("NaN in a query of latents reaches its output on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const Factors factors(4, 64, 96, 80);
  PolicyConfig<PolicyOf<PaluJoint>> policy{.factors = {&factors.view, 1}};
  Driver<PagedLayout<>, PaluJoint> d(config_of({.key_rank = 96, .value_rank = 80}), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 200, 100).ok());
  const StepPart part{s, 1};
  auto queries = query_rows(d.shape(), 5, 199, 1);
  queries[3 * 64 + 7] = NAN;
  for (const int thread_blocks : {0, 1}) {
    const Attended seen = run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1},
                                              queries, {}, {.thread_blocks = thread_blocks});
    REQUIRE(seen.status.ok());
    for (std::size_t head = 0; head < 8; ++head) {
      CHECK(std::isnan(seen.output[head * 64]) == (head == 3));
      CHECK(std::isnan(seen.lse_ln[head]) == (head == 3));
    }
  }
}
