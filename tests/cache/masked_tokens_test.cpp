/// Tokens that only a mask hides and tokens whose blocks have gone back give the same attention.
#include <algorithm>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/plain_evictors.hpp"
#include "support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

struct RandomlyEvicted {
  using evictor = RandomEvictor;
};

/// A paged layout returns blocks without live tokens, a contiguous one cannot.
using Dropped = PagedLayout<HeadPaging::per_head>;
using Masked = ContiguousLayout;

template <class Codec>
void check_group(int group) {
  using P = Compose<Codec, RandomlyEvicted>;
  const CacheConfig config{.num_layers = 1,
                           .num_query_heads = 2 * group,
                           .num_kv_heads = 2,
                           .head_dim = 64,
                           .max_sequences = 3,
                           .max_tokens = 700,
                           .max_step_tokens = 64};
  // Most tokens fall, so that some blocks are dead as a whole.
  const PolicyConfig<PolicyOf<P>> policy{.eviction = {.drop_percent = 97}};
  Driver<Dropped, P> dropped(config, policy);
  Driver<Masked, P> masked(config, policy);
  Random random(static_cast<std::uint64_t>(group));
  std::vector<StepPart> parts;
  for (int i = 0; i < 3; ++i) {
    const SequenceId s = dropped.create();
    REQUIRE(masked.create() == s);
    const int length = 1 + static_cast<int>(random.below(640));
    for (const int end : {length / 2, length}) {
      if (end == 0) continue;
      REQUIRE(dropped.fill(s, end, 64).ok());
      REQUIRE(masked.fill(s, end, 64).ok());
      (void)dropped.cache.evict(s);
      REQUIRE(*masked.cache.evict(s) == 0);
    }
    parts.push_back({s, std::min(length, 1 + i)});
  }
  CHECK(masked.cache.memory_usage().live_tokens == dropped.cache.memory_usage().live_tokens);
  CHECK(masked.cache.memory_usage().page_bytes_held > dropped.cache.memory_usage().page_bytes_held);

  std::vector<float> queries;
  for (const StepPart& part : parts) {
    const std::vector<float> rows = query_rows(masked.shape(), 5, part.tokens, part.tokens);
    queries.insert(queries.end(), rows.begin(), rows.end());
  }
  const Attended from_masked =
      run_attend(masked.cache.layer(0), {parts.data(), parts.size()}, queries, Path::vectorised);
  const Attended from_dropped =
      run_attend(dropped.cache.layer(0), {parts.data(), parts.size()}, queries, Path::vectorised);
  const Attended exact =
      run_attend(dropped.cache.layer(0), {parts.data(), parts.size()}, queries, Path::oracle);
  REQUIRE(from_masked.status.ok());
  CHECK(relative_l2(from_dropped.output, from_masked.output) < 1e-6);
  CHECK(relative_l2(from_masked.output, exact.output) < 1e-5);
}

}  // namespace

TEST_CASE("ragged sequences, any query group: masked is as good as gone", "[cache][evict]") {
  for (const int group : {1, 3, 4, 8}) {
    INFO("group " << group);
    check_group<Int8>(group);
    check_group<Int4Rotated>(group);
  }
}
