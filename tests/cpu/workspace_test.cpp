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
void check_largest(int head_group, int head_dim) {
  const int max_step = 300;
  const CacheConfig config{.num_layers = 1,
                           .num_query_heads = 2 * head_group,
                           .num_kv_heads = 2,
                           .head_dim = head_dim,
                           .max_sequences = sequences,
                           .max_tokens = 4500,
                           .max_step_tokens = max_step,
                           .rope = {.rotary_dim = head_dim}};
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
          const int kind = i < 3 ? i : random.below(4);  // first all parts alike
          const int split = std::max(1, std::min(most_rows, 511 / head_group));
          const int packed = std::max(1, std::min(most_rows, 8 / head_group));
          const int rows = kind == 0   ? packed
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
    for (const int rows : {1, 2, 3, 5, 7, 9, 64, 200, max_step}) {
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
  check_largest<PagedLayout<>, Int8>(1, 16);
  check_largest<PagedLayout<>, Int8>(2, 128);
  check_largest<ContiguousLayout, Kivi2>(4, 16);
  check_largest<PagedLayout<HeadPaging::per_head>, Compose<Int4Rotated, StreamingLLM>>(4, 128);
}

TEST_CASE("a part with many rows does not make the others' items large", "[cpu][workspace]") {
  const CacheConfig config{.num_layers = 1,
                           .num_query_heads = 8,
                           .num_kv_heads = 2,
                           .head_dim = 64,
                           .max_sequences = 8,
                           .max_tokens = 2048,
                           .max_step_tokens = 127};
  Driver<PagedLayout<>, Int4Rotated> d(config);
  std::vector<StepPart> one_row;
  for (int i = 0; i < 8; ++i) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 2048, 127).ok());
    one_row.push_back({s, 1});
  }
  const auto r = d.cache.layer(0);
  std::vector<StepPart> mixed = one_row;
  mixed[3].tokens = 127;
  const StepPart many{one_row[3].sequence, 127};
  CHECK(cpu::attend_workspace_bytes(r, mixed) <
        cpu::attend_workspace_bytes(r, one_row) + cpu::attend_workspace_bytes(r, {&many, 1}));
  // The uneven division of the workspace gives what each part gives alone.
  std::vector<float> queries;
  for (int i = 0; i < 8; ++i) {
    const auto rows = query_rows(d.shape(), 5, i, mixed[static_cast<std::size_t>(i)].tokens);
    queries.insert(queries.end(), rows.begin(), rows.end());
  }
  const Attended together = run_attend(r, mixed, queries, Path::vectorised);
  REQUIRE(together.status.ok());
  std::size_t at = 0;
  for (int i = 0; i < 8; ++i) {
    const StepPart part = mixed[static_cast<std::size_t>(i)];
    const auto own = query_rows(d.shape(), 5, i, part.tokens);
    const Attended alone = run_attend(r, {&part, 1}, own, Path::vectorised);
    CHECK(std::equal(alone.output.begin(), alone.output.end(),
                     together.output.begin() + static_cast<std::ptrdiff_t>(at)));
    at += alone.output.size();
  }
}
