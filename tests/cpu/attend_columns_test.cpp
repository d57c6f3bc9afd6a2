/// Column sums: the attention that each stored token received.
#include <cmath>
#include <numeric>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/plain_evictors.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

struct RandomlyEvicted {
  using evictor = RandomEvictor;
};

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 6,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 400,
          .max_step_tokens = 64,
          .rope = {.rotary_dim = 64}};
}

double unit_sum(const ClassShape& shape, const std::vector<float>& sums, int unit) {
  const auto floats = static_cast<std::ptrdiff_t>(shape.entries * block_tokens);
  return std::accumulate(sums.begin() + unit * floats, sums.begin() + (unit + 1) * floats, 0.0);
}

/// Rows times query heads of a unit, minus what the model's sinks take, and the oracle's numbers.
template <class D>
void check_sums(D& d, SequenceId s, int rows) {
  const float sinks[] = {-1.0f, 0.0f, 2.0f, 4.0f, 1.0f, 3.0f};
  for (const AttendParams& params : {AttendParams{}, AttendParams{.sink_logits = sinks}}) {
    const Attended fast = d.attend(s, rows, Path::vectorised, params, true);
    const Attended slow = d.attend(s, rows, Path::oracle, params, true);
    REQUIRE(fast.status.ok());
    CHECK(relative_l2(fast.column_sums, slow.column_sums) < 1e-5);
    for (int u = 0; u < 2; ++u) {
      double expected = 0;
      for (int row = 0; row < rows; ++row) {
        for (int head = 3 * u; head < 3 * u + 3; ++head) {
          const float lse = fast.lse_ln[static_cast<std::size_t>(row * 6 + head)];
          const bool sees = slow.lse_ln[static_cast<std::size_t>(row * 6 + head)] > -INFINITY;
          expected += !sees                           ? 0
                      : params.sink_logits == nullptr ? 1
                                                      : 1 - std::exp(double{sinks[head]} - lse);
        }
      }
      CHECK(unit_sum(d.shape(), fast.column_sums, u) == Approx(expected).epsilon(1e-5));
    }
  }
}

template <class P>
void check_policy(const PolicyConfig<PolicyOf<P>>& policy = {}) {
  Driver<PagedLayout<>, P> d(config(), policy);
  const SequenceId s = d.create();
  for (const int length : {1, 15, 64, 65, 129, 300, 390}) {
    REQUIRE(d.fill(s, length, 64).ok());
    check_sums(d, s, 1);
    check_sums(d, s, std::min(length, 30));
    REQUIRE(d.cache.evict(s).ok());
    check_sums(d, s, 1);
    REQUIRE(d.cache.compact(s, true).ok());
    check_sums(d, s, 1);
  }
}

}  // namespace

TEST_CASE("column sums are the probabilities of the live tokens", "[attend][columns]") {
  check_policy<Identity>();
  check_policy<Kivi2>({.tail = TailSpec{1, 128, 4}});
  check_policy<Compose<Int4Rotated, StreamingLLM>>(
      {.eviction = {.sink_tokens = 4, .window_tokens = 80}, .tail = TailSpec{.sink_tokens = 7}});
  check_policy<Compose<Int8, RandomlyEvicted>>({.eviction = {.drop_percent = 40}});
}

TEST_CASE("unused places of a compacted block of sinks receive nothing", "[attend][columns]") {
  // The blocks [0, 5) and [5, 69) are packed into one that holds nothing but eight sinks; the
  // position of the last is repeated behind it.
  using P = Compose<Int8, H2O>;
  Driver<PagedLayout<HeadPaging::per_head>, P> d(
      config(), {.eviction = {.heavy_tokens = 8, .recent_tokens = 1, .sink_tokens = 8},
                 .tail = TailSpec{1, 64, 8}});
  const SequenceId s = d.create();
  // Long enough for the tail to have lost its exact copies of the first block.
  REQUIRE(d.fill(s, 300, 64).ok());
  REQUIRE(d.cache.truncate(s, 5).ok());
  REQUIRE(d.fill(s, 134, 64).ok());
  REQUIRE(d.cache.evict(s).ok());
  const auto compacted = d.cache.compact(s);
  REQUIRE(compacted.ok());
  CHECK(compacted->tokens_moved == 8 * 2);
  check_sums(d, s, 1);
}

TEMPLATE_TEST_CASE("sums over chunks are the sums over single tokens", "[attend][columns]",
                   Int4Rotated, Kivi2) {
  Driver<PagedLayout<>, TestType> single(config()), chunked(config());
  const SequenceId s = single.create();
  REQUIRE(chunked.create() == s);
  const auto accumulate = [&](auto& d, int chunk) {
    std::vector<double> total(d.cache.column_sum_floats(0), 0.0);
    while (d.length(s) < 250) {
      const int tokens = std::min(chunk, static_cast<int>(250 - d.length(s)));
      REQUIRE(d.begin(s, tokens).ok());
      const Attended seen = d.attend(s, tokens, Path::vectorised, {}, true);
      for (std::size_t i = 0; i < total.size(); ++i) total[i] += double{seen.column_sums[i]};
      REQUIRE(d.cache.commit_step().ok());
    }
    return total;
  };
  const auto alone = accumulate(single, 1), together = accumulate(chunked, 64);
  double worst = 0;
  for (std::size_t i = 0; i < alone.size(); ++i)
    worst = std::max(worst, std::abs(alone[i] - together[i]));
  CHECK(worst < 1e-4);  // of sums of up to 250 rows
  CHECK(std::accumulate(alone.begin(), alone.end(), 0.0) == Approx(250.0 * 6).epsilon(1e-5));
}

TEMPLATE_TEST_CASE("sums under a log-sum-exp of the caller's are those of attend itself",
                   "[attend][columns]", Int4Rotated, Kivi2, (Compose<Int8, StreamingLLM>)) {
  using P = PolicyOf<TestType>;
  PolicyConfig<P> policy{.tail = TailSpec{P::tail.min_tokens, P::tail.granule_tokens, 4}};
  if constexpr (requires { policy.eviction.window_tokens; }) {
    policy.eviction = {.sink_tokens = 4, .window_tokens = 80};
  }
  Driver<PagedLayout<>, P> d(config(), policy);
  const SequenceId a = d.create(), b = d.create();
  REQUIRE(d.fill(a, 250, 50).ok());
  REQUIRE(d.fill(b, 130, 50).ok());
  REQUIRE(d.cache.evict(a).ok());
  const StepPart parts[] = {{a, 7}, {b, 3}};
  const auto queries = query_rows(d.shape(), 5, 0, 10);
  const auto ref = d.cache.layer(0);
  const Attended own = run_attend(ref, parts, queries, Path::vectorised, {}, true);
  REQUIRE(own.status.ok());
  const AttendInputs in{parts, HeadRows::dense(queries.data(), Scalar::f32, 6, 64)};
  const AlignedBytes workspace(cpu::attend_workspace_bytes(ref, in.parts));
  std::vector<float> sums(own.column_sums.size(), 0.0f);
  REQUIRE(
      cpu::sum_attention_columns(ref, in, own.lse_ln.data(), sums.data(), workspace.span()).ok());
  CHECK(sums == own.column_sums);
  // Half of the attention elsewhere: every probability is half as large.
  std::vector<float> merged = own.lse_ln;
  for (float& lse : merged) lse += std::log(2.0f);
  REQUIRE(cpu::sum_attention_columns(ref, in, merged.data(), sums.data(), workspace.span()).ok());
  double difference = 0;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    difference = std::max(difference, std::abs(2.0 * sums[i] - own.column_sums[i]));
  }
  CHECK(difference < 1e-5);

  const std::vector<float> nothing(60, -INFINITY);
  REQUIRE(cpu::sum_attention_columns(ref, in, nothing.data(), sums.data(), workspace.span()).ok());
  for (const float x : sums) REQUIRE(x == 0.0f);
  CHECK(cpu::sum_attention_columns(ref, in, nullptr, sums.data(), workspace.span()).code ==
        StatusCode::null_pointer);
  CHECK(cpu::sum_attention_columns(ref, in, nothing.data(), sums.data(), {}).code ==
        StatusCode::buffer_too_small);
}

TEST_CASE("observe refuses sums that are no numbers and changes nothing", "[attend][columns]") {
  Driver<PagedLayout<>, Compose<Int8, H2O>> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 100, 50).ok());
  const StepPart part{s, 1};
  std::vector<float> sums(d.cache.column_sum_floats(0), 1.0f);
  const auto observe = [&] { return d.cache.observe(0, {&part, 1}, {sums.data(), sums.size()}); };
  REQUIRE(observe().ok());
  const AlignedBytes state = d.buffers.state.copy();
  sums[99] = NAN;
  CHECK(observe().code == StatusCode::not_finite);
  sums[99] = INFINITY;
  CHECK(observe().code == StatusCode::not_finite);
  CHECK(d.buffers.state == state);
  sums[99] = 1.0f;
  sums[100] = NAN;  // no token lies there
  CHECK(observe().ok());
}
