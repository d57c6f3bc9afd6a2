/// Long sequences are cut into splits whose results are merged: the same answer, in any order.
#include <vector>

#include "support/cache_fixture.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace terse::tests {
namespace {

constexpr int tokens = 2 * cpu::split_entries * block_tokens + 77;  // two whole splits and a part

template <class Policy>
double error_of_splits() {
  CacheFixture<PagedLayout<>, Policy> fixture({.num_query_heads = 6,
                                               .num_kv_heads = 2,
                                               .head_dim = 16,
                                               .max_tokens = tokens,
                                               .max_step_tokens = tokens});
  const auto sequence = fixture.cache.create_sequence();
  REQUIRE(sequence.ok());
  Random random(4);
  const StepPart all{*sequence, tokens};
  REQUIRE(fixture.cache.begin_step({&all, 1}).ok());
  const auto count = static_cast<std::size_t>(tokens * 2 * 16);
  const std::vector<float> k = random.normals(count, 2.0f), v = random.normals(count);
  REQUIRE(fixture.cache
              .append(0, {HeadRows::dense(k.data(), Scalar::f32, 2, 16),
                          HeadRows::dense(v.data(), Scalar::f32, 2, 16),
                          {}})
              .ok());
  REQUIRE(fixture.cache.commit_step().ok());

  const StepPart part{*sequence, 2};
  const std::vector<float> q = random.normals(2 * 6 * 16);
  const auto ref = fixture.cache.layer(0);
  REQUIRE(cpu::detail::part_shape(ref, part).splits == 3);
  const Attended fast = run_attend(ref, {&part, 1}, q, Path::vectorised, {}, true);
  const Attended exact = run_attend(ref, {&part, 1}, q, Path::oracle, {}, true);
  REQUIRE(fast.status.ok());
  CHECK(relative_l2(fast.lse_ln, exact.lse_ln) < 1e-5);
  CHECK(relative_l2(fast.column_sums, exact.column_sums) < 1e-4);

  // The last item first: a caller's threads may take them in any order.
  Attended reversed = fast;
  AlignedBytes workspace(cpu::attend_workspace_bytes(ref, {&part, 1}));
  const auto backwards = [](int n, auto&& f) {
    for (int i = n - 1; i >= 0; --i) f(i);
  };
  REQUIRE(cpu::attend(ref, {{&part, 1}, HeadRows::dense(q.data(), Scalar::f32, 6, 16)},
                      {MutableHeadRows::dense(reversed.output.data(), Scalar::f32, 6, 16)},
                      workspace.span(), {}, backwards)
              .ok());
  CHECK(reversed.output == fast.output);
  return relative_l2(fast.output, exact.output);
}

TEST_CASE("splits merge to the answer of the whole") {
  CHECK(error_of_splits<Identity>() < 1e-5);
  CHECK(error_of_splits<Int4Rotated>() < 1e-5);
  CHECK(error_of_splits<Kivi2>() < 1e-5);
}

}  // namespace
}  // namespace terse::tests
