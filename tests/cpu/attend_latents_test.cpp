/// Latents: keys rebuilt inside attention, values projected after it, or left as they are.
#include <cmath>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/projection_factors.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 8,
          .num_kv_heads = 4,
          .head_dim = 64,
          .max_sequences = 1,
          .max_tokens = 320,
          .max_step_tokens = 128,
          .rope = {.pairing = RopePairing::interleaved, .rotary_dim = 64}};
}

/// Against the oracle; and latent_output, projected here, must be the output.
template <class P>
void check(int key_rank, int value_rank, PolicyConfig<PolicyOf<P>> policy = {}) {
  const Factors factors(4, 64, key_rank, value_rank);
  policy.factors = {&factors.view, 1};
  Driver<PagedLayout<>, P> d(config(), policy);
  const SequenceId s = d.create();
  for (const int length : {1, 17, 64, 65, 129, 300}) {
    REQUIRE(d.fill(s, length, 100).ok());
    for (const int rows : {1, std::min(length, 9)}) {
      INFO("length " << length << ", rows " << rows);
      const Attended fast = d.attend(s, rows, Path::vectorised, {}, true);
      const Attended slow = d.attend(s, rows, Path::oracle, {}, true);
      REQUIRE(fast.status.ok());
      CHECK(relative_l2(fast.output, slow.output) < 1e-5);
      CHECK(relative_l2(fast.lse_ln, slow.lse_ln) < 1e-5);
      CHECK(relative_l2(fast.column_sums, slow.column_sums) < 1e-5);
      const Attended latent = d.attend(s, rows, Path::vectorised, {.latent_output = true});
      REQUIRE(latent.status.ok());
      std::vector<float> projected;
      for (int v = 0; v < rows * 8; ++v) {
        const int kv_head = v % 8 / 2;
        for (int c = 0; c < 64; ++c) {
          double x = 0;
          for (int j = 0; j < value_rank; ++j) {
            x += double{latent.output[static_cast<std::size_t>(v * value_rank + j)]} *
                 factors.value_up[static_cast<std::size_t>((kv_head * 64 + c) * value_rank + j)];
          }
          projected.push_back(static_cast<float>(x));
        }
      }
      CHECK(relative_l2(projected, fast.output) < 1e-5);
    }
    REQUIRE(d.cache.evict(s).ok());
  }
}

}  // namespace

TEST_CASE("latents over all heads, pairs of heads and single heads", "[attend][latents]") {
  check<PaluJoint>(96, 160);
  check<PaluPerHead>(48, 32);
  check<Palu<PaluSpec{.key_heads_per_group = 2, .value_heads_per_group = 4}>>(64, 80);
}

TEST_CASE("quantised latents, exact sinks, and eviction", "[attend][latents]") {
  check<Compose<PaluJoint, Int4Rotated>>(96, 128, {.tail = TailSpec{.sink_tokens = 5}});
  check<Compose<Palu<PaluSpec{2, 2}>, Kivi2, StreamingLLM>>(
      64, 64, {.eviction = {.sink_tokens = 4, .window_tokens = 90}, .tail = TailSpec{1, 64, 4}});
  check<Compose<PaluPerHead, Int8, H2O>>(32, 48,
                                         {.eviction = {.heavy_tokens = 50, .recent_tokens = 30}});
}

TEST_CASE("latents with a tail of 8 bits", "[attend][latents]") {
  const TailSpec tail{.min_tokens = 20, .sink_tokens = 5};
  check<Compose<PaluPerHead, Kivi2, TailCodec<Int8>>>(48, 32, {.tail = tail});
  check<Compose<PaluJoint, Int4Rotated, TailCodec<Int8>>>(96, 128, {.tail = tail});
}

TEST_CASE("full-rank latents with unit factors are the vectors themselves", "[attend][latents]") {
  // Keys before RoPE as latents: after rebuilding, those of a plain cache that stores them rotated.
  const CacheConfig c = config();
  std::vector<float> unit(4 * 64 * 64, 0.0f);
  for (std::size_t h = 0; h < 4; ++h) {
    for (std::size_t i = 0; i < 64; ++i) unit[(h * 64 + i) * 64 + i] = 1.0f;
  }
  const ProjectionFactors factors{64, 64, unit.data(), unit.data()};
  Driver<PagedLayout<>, PaluPerHead> latent(c, {.factors = {&factors, 1}});
  Driver<PagedLayout<>, Identity> plain(c);
  const SequenceId s = latent.create();
  REQUIRE(plain.create() == s);
  REQUIRE(latent.fill(s, 128, 128).ok());
  TokenRows rows = token_rows(plain.shape(), 1, 0, 0, 128);
  for (int p = 0; p < 128; ++p) {
    for (int h = 0; h < 4; ++h)
      rotate(c.rope, p, &rows.keys[static_cast<std::size_t>((p * 4 + h) * 64)]);
  }
  const StepPart part{s, 128};
  REQUIRE(plain.cache.begin_step({&part, 1}).ok());
  REQUIRE(plain.cache.append(0, append_inputs(plain.shape(), rows)).ok());
  REQUIRE(plain.cache.commit_step().ok());
  // Keys are rounded to 16 bits before the rotation in one cache and after it in the other.
  CHECK(relative_l2(latent.attend(s, 5).output, plain.attend(s, 5).output) < 2e-3);
}
