// Attention where keys are stored less their mean, in bases that are not orthogonal.
#include <cmath>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/random_calibration.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

CacheConfig config() {
  return {.num_layers = 2,
          .num_query_heads = 6,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 320,
          .max_step_tokens = 64,
          .rope = {.rotary_dim = 64}};
}

template <class Policy>
PolicyConfig<PolicyOf<Policy>> calibrated(const Calibration& calibration) {
  PolicyConfig<PolicyOf<Policy>> policy;
  policy.calibration = calibration.view();
  return policy;
}

const Calibration& calibration() {
  static const Calibration made = random_calibration({2, 2, 64});
  return made;
}

/// The fast path against the oracle, which takes every key and value out of its basis.
template <class D>
void check(const D& d, SequenceId s, bool want_sums) {
  const float sinks[] = {-3.0f, 0.0f, 2.0f, 8.0f, -INFINITY, 30.0f};
  for (const AttendParams& params :
       {AttendParams{}, AttendParams{.sink_logits = sinks},
        AttendParams{.softmax_scale = 0.3f, .logit_soft_cap = 5.0f, .sink_logits = sinks}}) {
    for (const int rows : {1, 12}) {
      const Attended fast = d.attend(s, rows, Path::vectorised, params, want_sums, 1);
      const Attended slow = d.attend(s, rows, Path::oracle, params, want_sums, 1);
      REQUIRE(fast.status.ok());
      CAPTURE(rows, params.logit_soft_cap);
      CHECK(relative_l2(fast.output, slow.output) < 2e-5);
      CHECK(relative_l2(fast.lse_ln, slow.lse_ln) < 2e-5);
      CHECK(relative_l2(fast.column_sums, slow.column_sums) < 2e-5);
    }
  }
}

}  // namespace

TEST_CASE("outputs, log-sum-exps and column sums are those of the keys themselves") {
  using P = Compose<Shaped2K1V, H2O>;
  PolicyConfig<PolicyOf<P>> policy = calibrated<P>(calibration());
  policy.eviction = {.heavy_tokens = 100, .recent_tokens = 100};
  Driver<PagedLayout<HeadPaging::per_head>, P> d(config(), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 64).ok());
  check(d, s, true);
  // Tokens that move, forks and cuts.
  REQUIRE(d.cache.evict(s).ok());
  REQUIRE(d.cache.compact(s).ok());
  check(d, s, true);
  const SequenceId sibling = *d.cache.fork(s);
  REQUIRE(d.cache.truncate(sibling, 250).ok());
  check(d, sibling, true);
}

TEST_CASE("without a tail too, and where queries are turned to distances in the cache") {
  using P = Compose<Shaped2, StreamingLLM>;
  PolicyConfig<PolicyOf<P>> policy = calibrated<P>(calibration());
  policy.tail = TailSpec{};
  policy.eviction = {.sink_tokens = 4, .window_tokens = 100};
  Driver<PagedLayout<HeadPaging::per_head>, P> d(config(), policy);
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 64).ok());
  REQUIRE(d.cache.evict(s).ok());
  check(d, s, false);
}

TEMPLATE_TEST_CASE("a calibration changes codes, not what they stand for", "", Shaped4,
                   ShapedTrellis4) {
  const CacheConfig c = config();
  Driver<PagedLayout<>, Identity> exact(c);
  Driver<PagedLayout<>, TestType> with(c, calibrated<TestType>(calibration()));
  const SequenceId s = exact.create();
  REQUIRE(with.create() == s);
  REQUIRE(exact.fill(s, 300, 64).ok());
  REQUIRE(with.fill(s, 300, 64).ok());
  const Attended a = exact.attend(s, 3), b = with.attend(s, 3);
  CHECK(relative_l2(b.output, a.output) < 0.35);
  CHECK(relative_l2(b.lse_ln, a.lse_ln) < 0.02);
  Driver<PagedLayout<>, TestType> without(c);
  REQUIRE(without.create() == s);
  REQUIRE(without.fill(s, 300, 64).ok());
  CHECK_FALSE(without.attend(s, 3).output == b.output);
}
