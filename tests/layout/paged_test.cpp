// Paged storage: one page for all heads, or pages of their own.
#include "terse/layout/paged.hpp"

#include "tests/support/cache_fixture.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr CacheConfig config{.num_layers = 2,
                             .num_query_heads = 6,
                             .num_kv_heads = 3,
                             .head_dim = 64,
                             .max_sequences = 2,
                             .max_tokens = 256};

template <HeadPaging P>
ClassShape shape_of() {
  return KVCache<PagedLayout<P>, Int8>::plan(config)->classes[0].shape;
}

}  // namespace

TEST_CASE("both kinds are layouts with pages") {
  static_assert(Layout<PagedLayout<>> && PagedLayout<>::paged);
  static_assert(PagedLayout<>::head_paging == HeadPaging::shared);
  static_assert(PagedLayout<HeadPaging::per_head>::head_paging == HeadPaging::per_head);
}

TEST_CASE("a page holds the blocks of all units, or of one") {
  const ClassShape shared = shape_of<HeadPaging::shared>();
  const ClassShape per_head = shape_of<HeadPaging::per_head>();
  CHECK(shared.rows == 1);
  CHECK(shared.units_per_row == 3);
  CHECK(per_head.rows == 3);
  CHECK(per_head.units_per_row == 1);
  CHECK(shared.page_bytes == 3 * per_head.page_bytes);
  CHECK(3 * shared.num_pages == per_head.num_pages);
  CHECK(per_head.page_bytes == 2 * Int8::record(Side::key, 64).bytes);
}

TEST_CASE("pages are taken when a block begins and come back with the sequence") {
  CacheFixture<PagedLayout<>, Int8> f(config);
  const std::int64_t all = f.cache.memory_usage().pages_free;
  const SequenceId sequence = *f.cache.create_sequence();
  CHECK(f.cache.memory_usage().pages_held == 0);
  const std::vector<float> x(3 * 64, 0.5f);
  const HeadRows rows = HeadRows::dense(x.data(), Scalar::f32, 3, 64);
  for (int t = 0; t < 65; ++t) {
    const StepPart part{sequence, 1};
    REQUIRE(f.cache.begin_step({&part, 1}).ok());
    for (int layer = 0; layer < 2; ++layer) REQUIRE(f.cache.append(layer, {rows, rows}).ok());
    REQUIRE(f.cache.commit_step().ok());
    CHECK(f.cache.memory_usage().pages_held == 2 * (t / 64 + 1));
  }
  REQUIRE(f.cache.release(sequence).ok());
  CHECK(f.cache.memory_usage().pages_free == all);
}
