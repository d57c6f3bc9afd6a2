/// The largest workspace is never too small, and exact where it is reached.
#include <algorithm>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int sequences = 3;

/// `head_group` query heads share a KV head.
template <Layout L, class P>
void check_largest(int head_group) {
  const int max_step = 300;
  const CacheConfig config{.num_layers = 1,
                           .num_query_heads = 2 * head_group,
                           .num_kv_heads = 2,
                           .head_dim = 16,
                           .max_sequences = sequences,
                           .max_tokens = 4500,
                           .max_step_tokens = max_step,
                           .rope = {.rotary_dim = 16}};
  Driver<L, P> d(config);
  std::vector<SequenceId> ids;
  for (int i = 0; i < sequences; ++i) ids.push_back(d.create());
  const auto r = d.cache.layer(0);
  Random random(4);
  std::vector<std::size_t> largest(sequences + 1, 0);
  const auto check = [&](int most_rows) {
    for (int parts = 1; parts <= sequences; ++parts) {
      const std::size_t bound = cpu::max_attend_workspace_bytes(r, parts, most_rows);
      std::size_t reached = 0;
      for (int i = 0; i < 60; ++i) {
        std::vector<StepPart> step;
        for (int p = 0; p < parts; ++p) {
          const int kind = random.below(4);
          const int split = std::max(1, std::min(most_rows, 511 / head_group));
          const int rows = kind == 0   ? 1
                           : kind == 1 ? most_rows
                           : kind == 2 ? split
                                       : 1 + random.below(most_rows);
          step.push_back({ids[static_cast<std::size_t>(p)], rows});
        }
        const std::size_t need = cpu::attend_workspace_bytes(r, step);
        CHECK(need <= bound);
        reached = std::max(reached, need);
      }
      largest[static_cast<std::size_t>(parts)] = reached;
    }
  };
  for (const int length : {0, 70, 2500, 4500 + 64}) {
    for (const SequenceId s : ids) REQUIRE(d.fill(s, std::min(length, 4544), max_step).ok());
    for (const int rows : {1, 2, 7, 64, 200, max_step}) {
      INFO("length " << length << ", rows " << rows);
      check(rows);
      if (length < 4500) continue;
      for (int parts = 1; parts <= sequences; ++parts) {
        CHECK(largest[static_cast<std::size_t>(parts)] ==
              cpu::max_attend_workspace_bytes(r, parts, rows));
      }
    }
  }
  CHECK(cpu::max_attend_workspace_bytes(r, 0, 1) == 0);
}

}  // namespace

TEST_CASE("no call needs more than the largest workspace, and full sequences need it",
          "[cpu][workspace]") {
  check_largest<PagedLayout<>, Int8>(1);
  check_largest<ContiguousLayout, Kivi2>(4);
  check_largest<PagedLayout<HeadPaging::per_head>, Compose<Int4Rotated, StreamingLLM>>(2);
}
