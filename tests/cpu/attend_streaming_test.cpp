/// StreamingLLM's two rotations of the query against rotating every key to its place in the cache.
#include <cmath>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/plain_attention.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int sinks = 4, window = 60;

/// The paper's way on the 16-bit keys of an identity cache: keys before RoPE, rotated to the index
/// they have in the cache, the query to its own.
std::vector<float> rerotated(const ClassShape& shape, const RopeSpec& rope, std::int64_t length,
                             std::int64_t window_begin, int rows) {
  std::vector<float> result;
  std::vector<std::int64_t> positions;
  for (std::int64_t p = 0; p < sinks; ++p) positions.push_back(p);
  for (std::int64_t p = window_begin; p < length; ++p) positions.push_back(p);
  std::vector<TokenRows> tokens;
  for (const std::int64_t p : positions) tokens.push_back(token_rows(shape, 1, 0, p, 1));
  for (int row = 0; row < rows; ++row) {
    const std::int64_t p = length - rows + row;
    const auto queries = query_rows(shape, 5, p, 1);
    const std::int64_t own_index = static_cast<std::int64_t>(positions.size()) - rows + row;
    for (std::size_t head = 0; head < 2; ++head) {
      std::vector<double> q(queries.begin() + static_cast<std::ptrdiff_t>(head * 64),
                            queries.begin() + static_cast<std::ptrdiff_t>(head * 64 + 64));
      turn(rope, static_cast<double>(own_index - p), q);
      std::vector<double> out(64, 0.0);
      double sum = 0;
      for (std::size_t i = 0; i < positions.size() && positions[i] <= p; ++i) {
        std::vector<double> k;
        for (std::size_t c = 0; c < 64; ++c) k.push_back(to_float(to_f16(tokens[i].keys[c])));
        turn(rope, static_cast<double>(i) - static_cast<double>(positions[i]), k);
        double logit = 0;
        for (std::size_t c = 0; c < 64; ++c) logit += q[c] * k[c];
        const double weight = std::exp(logit / 8.0);
        sum += weight;
        for (std::size_t c = 0; c < 64; ++c) {
          out[c] += weight * to_float(to_f16(tokens[i].values[c]));
        }
      }
      for (const double x : out) result.push_back(static_cast<float>(x / sum));
    }
  }
  return result;
}

void check(RopeSpec rope) {
  using P = Compose<Identity, StreamingLLM>;
  const CacheConfig config{.num_layers = 1,
                           .num_query_heads = 2,
                           .num_kv_heads = 1,
                           .head_dim = 64,
                           .max_sequences = 1,
                           .max_tokens = 512,
                           .max_step_tokens = 64,
                           .rope = rope};
  Driver<PagedLayout<>, P> d(config, {.eviction = {.sink_tokens = sinks, .window_tokens = window}});
  const SequenceId s = d.create();
  std::int64_t next_check = 70;
  while (d.length(s) < 100000) {
    const bool looks = d.length(s) >= next_check;
    const int tokens = looks ? 3 : 64;
    REQUIRE(d.cache.evict(s, looks ? tokens : 0).ok());
    REQUIRE(d.begin(s, tokens).ok());
    if (looks) {
      next_check = d.length(s) * 3;
      const std::int64_t length = d.length(s) + tokens;
      const auto expected = rerotated(d.shape(), rope, length, length - window, tokens);
      INFO("length " << length);
      // Angles of 1e5 radians in fp32 tables would be wrong by 1e-2; rounding alone by 1e-6.
      CHECK(relative_l2(d.attend(s, tokens).output, expected) < 1e-5);
      CHECK(relative_l2(d.attend(s, tokens, Path::oracle).output, expected) < 1e-5);
    }
    REQUIRE(d.cache.commit_step().ok());
  }
}

}  // namespace

TEST_CASE("two rotations equal re-rotated keys over 100000 tokens", "[attend][streaming]") {
  check({.pairing = RopePairing::half_split, .rotary_dim = 64});
}

TEST_CASE("two rotations with interleaved pairs and a part of the channels",
          "[attend][streaming]") {
  check({.pairing = RopePairing::interleaved, .rotary_dim = 32, .base = 500000.0});
}

TEST_CASE("re-indexing matters", "[attend][streaming]") {
  // The same tokens with distances as in the text give another result.
  const CacheConfig config{.num_layers = 1,
                           .num_query_heads = 2,
                           .num_kv_heads = 1,
                           .head_dim = 64,
                           .max_sequences = 1,
                           .max_tokens = 512,
                           .max_step_tokens = 64,
                           .rope = {.rotary_dim = 64}};
  Driver<PagedLayout<>, Compose<Identity, StreamingLLM>> cache_index(
      config, {.eviction = {.sink_tokens = 16, .window_tokens = 16}});
  Driver<PagedLayout<>, Compose<Identity, SinkWindow>> original(
      config, {.eviction = {.sink_tokens = 16, .window_tokens = 16}});
  const SequenceId s = cache_index.create();
  REQUIRE(original.create() == s);
  REQUIRE(cache_index.fill(s, 300, 50).ok());
  REQUIRE(original.fill(s, 300, 50).ok());
  CHECK(relative_l2(cache_index.attend(s).output, original.attend(s).output) < 1e-6);
  REQUIRE(cache_index.cache.evict(s).ok());
  REQUIRE(original.cache.evict(s).ok());
  CHECK(relative_l2(cache_index.attend(s).output, original.attend(s).output) > 0.05);
}
