/// What attend, attach and creation refuse because it could only be wrong.
#include <cmath>
#include <vector>

#include "support/cache_fixture.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace terse::tests {
namespace {

CacheConfig small_config() {
  return {.num_layers = 2,
          .num_query_heads = 2,
          .num_kv_heads = 1,
          .head_dim = 16,
          .max_tokens = 128,
          .rope = {.rotary_dim = 16}};
}

template <class Cache>
Status append(Cache& cache, int layer) {
  const std::vector<float> x = Random(5).normals(16);
  const HeadRows rows = HeadRows::dense(x.data(), Scalar::f32, 1, 16);
  return cache.append(layer, {rows, rows, {}});
}

TEST_CASE("a layer's slot must hold the step before it is attended to") {
  CacheFixture<PagedLayout<>, Int8> fixture(small_config());
  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  const StepPart part{*sequence, 1};
  const std::vector<float> q = Random(6).normals(32);
  const auto status = [&](int layer) {
    return run_attend(fixture.cache.layer(layer), {&part, 1}, q, Path::vectorised).status.code;
  };
  REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
  CHECK(status(0) == StatusCode::wrong_phase);
  REQUIRE(append(fixture.cache, 0).ok());
  CHECK(status(0) == StatusCode::ok);
  CHECK(status(1) == StatusCode::wrong_phase);
  REQUIRE(append(fixture.cache, 1).ok());
  CHECK(status(1) == StatusCode::ok);
  REQUIRE(fixture.cache.commit_step().ok());
  CHECK(status(0) == StatusCode::ok);
  REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
  CHECK(status(0) == StatusCode::wrong_phase);
  REQUIRE(fixture.cache.abandon_step().ok());
  CHECK(status(0) == StatusCode::ok);
}

TEST_CASE("parameters that are no numbers are refused") {
  CacheFixture<PagedLayout<>, Int8> fixture(small_config());
  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  const StepPart part{*sequence, 1};
  REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
  REQUIRE(append(fixture.cache, 0).ok());
  const std::vector<float> q = Random(6).normals(32);
  for (const float bad : {NAN, INFINITY, -1.0f}) {
    for (const AttendParams& params :
         {AttendParams{.softmax_scale = bad}, AttendParams{.logit_soft_cap = bad}}) {
      const Attended a =
          run_attend(fixture.cache.layer(0), {&part, 1}, q, Path::vectorised, params);
      CHECK(a.status.code == StatusCode::invalid_argument);
    }
  }
}

TEST_CASE("a sliding window and cache-index positions exclude each other") {
  CacheFixture<PagedLayout<>, StreamingLLM> fixture(small_config());
  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  const StepPart part{*sequence, 1};
  REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
  REQUIRE(append(fixture.cache, 0).ok());
  const std::vector<float> q = Random(6).normals(32);
  const Attended a = run_attend(fixture.cache.layer(0), {&part, 1}, q, Path::vectorised,
                                {.sliding_window_tokens = 8});
  CHECK(a.status.code == StatusCode::unsupported);
}

TEST_CASE("factors without a projector are refused") {
  using Cache = KVCache<PagedLayout<>, Int8>;
  const std::vector<float> up(16 * 16);
  const ProjectionFactors factors[] = {{16, 16, up.data(), up.data()},
                                       {16, 16, up.data(), up.data()},
                                       {16, 16, up.data(), up.data()}};
  const Status status =
      Cache::supports(small_config(), {PolicyConfig<PolicyOf<Int8>>{.factors = factors}});
  CHECK(status.code == StatusCode::invalid_argument);
  CHECK(status.detail == 3);
}

TEST_CASE("attach recognises its own buffers only") {
  CacheFixture<PagedLayout<>, Int8> fixture(small_config());
  using Cache = KVCache<PagedLayout<>, Int8>;
  CHECK(Cache::attach(small_config(), fixture.buffers.view()).ok());
  CacheConfig other = small_config();
  other.max_tokens = 64;
  CHECK(Cache::attach(other, fixture.buffers.view()).status().code == StatusCode::mismatch);
  other = small_config();
  other.rope.base = 5000;
  CHECK(Cache::attach(other, fixture.buffers.view()).status().code == StatusCode::mismatch);
  other = small_config();
  const LayerPlace swapped[] = {{1, 0}, {0, 0}};
  other.layers = swapped;
  CHECK(Cache::attach(other, fixture.buffers.view()).status().code == StatusCode::mismatch);
  using Q8 = KVCache<PagedLayout<>, Q8_0>;
  const auto q8_plan = Q8::plan(small_config());
  REQUIRE(q8_plan.ok());
  const OwnedBuffers empty(*q8_plan);
  CHECK(Q8::attach(small_config(), empty.view()).status().code == StatusCode::mismatch);

  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  const StepPart part{*sequence, 1};
  REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
  CHECK(Cache::attach(small_config(), fixture.buffers.copy().view()).status().code ==
        StatusCode::wrong_phase);
}

TEST_CASE("attach refuses buffers whose tails have another size") {
  CacheConfig longer = small_config();
  longer.max_step_tokens = 200;
  CacheFixture<PagedLayout<>, Kivi2> fixture(longer);
  CHECK(
      KVCache<PagedLayout<>, Kivi2>::attach(small_config(), fixture.buffers.view()).status().code ==
      StatusCode::mismatch);
}

TEST_CASE("rows whose exact copies are gone are refused, not read decoded") {
  CacheConfig config = small_config();
  config.max_tokens = 640;
  config.max_step_tokens = 64;
  CacheFixture<PagedLayout<>, Kivi2> fixture(config);
  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  const auto step = [&](int tokens, bool commit) {
    const StepPart part{*sequence, tokens};
    REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
    const std::vector<float> x = Random(5).normals(static_cast<std::size_t>(tokens * 16));
    const HeadRows rows = HeadRows::dense(x.data(), Scalar::f32, 1, 16);
    for (int layer = 0; layer < 2; ++layer) {
      REQUIRE(fixture.cache.append(layer, {rows, rows, {}}).ok());
    }
    REQUIRE((commit ? fixture.cache.commit_step() : fixture.cache.abandon_step()).ok());
  };
  const auto attend_code = [&](int rows) {
    const StepPart part{*sequence, rows};
    const std::vector<float> q = Random(6).normals(static_cast<std::size_t>(rows * 32));
    return run_attend(fixture.cache.layer(0), {&part, 1}, q, Path::vectorised).status.code;
  };
  for (int i = 0; i < 4; ++i) step(64, true);
  step(1, true);
  // The oldest of 64 rows, at position 193, reads tokens from 128 on exactly.
  CHECK(attend_code(64) == StatusCode::ok);
  step(64, false);  // takes the places of tokens 128 to 191 in the tail
  CHECK(attend_code(64) == StatusCode::would_be_lossy);
  CHECK(attend_code(1) == StatusCode::ok);
  // Inside the next step too, but not for that step's own row.
  const StepPart one{*sequence, 1};
  REQUIRE(fixture.cache.begin_step({&one, 1}).ok());
  REQUIRE(append(fixture.cache, 0).ok());
  CHECK(attend_code(64) == StatusCode::would_be_lossy);
  CHECK(attend_code(1) == StatusCode::ok);
  REQUIRE(fixture.cache.abandon_step().ok());
  // Rows that do not see the lost tokens are served.
  const StepPart rows{*sequence, 64};
  const std::vector<float> q = Random(6).normals(64 * 32);
  CHECK(run_attend(fixture.cache.layer(0), {&rows, 1}, q, Path::vectorised,
                   {.sliding_window_tokens = 1})
            .status.ok());
}

TEST_CASE("rows that read decoded since truncate are served in their step and after it") {
  CacheConfig config = small_config();
  config.max_tokens = 640;
  config.max_step_tokens = 64;
  CacheFixture<PagedLayout<>, Kivi2> fixture(config);
  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  const auto append_rows = [&](int tokens) {
    const StepPart part{*sequence, tokens};
    REQUIRE(fixture.cache.begin_step({&part, 1}).ok());
    const std::vector<float> x = Random(5).normals(static_cast<std::size_t>(tokens * 16));
    const HeadRows rows = HeadRows::dense(x.data(), Scalar::f32, 1, 16);
    for (int layer = 0; layer < 2; ++layer) {
      REQUIRE(fixture.cache.append(layer, {rows, rows, {}}).ok());
    }
  };
  for (const int tokens : {64, 64, 64, 64, 64, 1}) {
    append_rows(tokens);
    REQUIRE(fixture.cache.commit_step().ok());
  }
  // Exact copies go back to 192; the rule would have a sequence of 200 tokens read 128 exactly.
  REQUIRE(fixture.cache.truncate(*sequence, 200).ok());
  append_rows(64);
  const StepPart part{*sequence, 64};
  const std::vector<float> q = Random(6).normals(64 * 32);
  const Attended inside = run_attend(fixture.cache.layer(0), {&part, 1}, q, Path::vectorised);
  CHECK(inside.status.ok());
  REQUIRE(fixture.cache.commit_step().ok());
  const Attended after = run_attend(fixture.cache.layer(0), {&part, 1}, q, Path::vectorised);
  CHECK(after.status.ok());
  CHECK(inside.output == after.output);
}

TEST_CASE("a cache gives back the configuration it was made with") {
  CacheConfig config = small_config();
  const LayerPlace shared[] = {{0, 0}, {0, 0}};
  config.layers = shared;
  CacheFixture<PagedLayout<>, Int8> fixture(config);
  const auto again = KVCache<PagedLayout<>, Int8>::plan(fixture.cache.config());
  REQUIRE(again.ok());
  CHECK(again->pages_bytes == fixture.cache.memory_plan().pages_bytes);
  CHECK(again->classes[0].shape.slots == 1);
}

}  // namespace
}  // namespace terse::tests
