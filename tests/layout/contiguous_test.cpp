// Contiguous storage: a region per sequence, nothing shared.
#include "terse/layout/contiguous.hpp"

#include "tests/support/cache_fixture.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

TEST_CASE("a layout without pages") {
  static_assert(Layout<ContiguousLayout> && !ContiguousLayout::paged);
}

TEST_CASE("blocks of a sequence follow each other, and sequences do not meet") {
  const CacheConfig config{.num_layers = 2,
                           .num_query_heads = 4,
                           .num_kv_heads = 2,
                           .head_dim = 64,
                           .max_sequences = 3,
                           .max_tokens = 256};
  CacheFixture<ContiguousLayout, Int8> f(config);
  const MemoryPlan& plan = f.cache.memory_plan();
  const ClassShape& shape = plan.classes[0].shape;
  CHECK(plan.pages_bytes == shape.page_bytes * static_cast<std::size_t>(shape.num_pages));
  CHECK(shape.num_pages == std::int64_t{2} * 3 * shape.entries);
  std::vector<bool> used(static_cast<std::size_t>(shape.num_pages));
  for (int layer = 0; layer < 2; ++layer) {
    const auto r = f.cache.layer(layer);
    for (int sequence = 0; sequence < 3; ++sequence) {
      for (int e = 0; e < shape.entries; ++e) {
        const auto page = static_cast<std::size_t>(r.page(sequence, 0, e));
        REQUIRE(page < used.size());
        REQUIRE_FALSE(used[page]);
        used[page] = true;
        if (e > 0) {
          CHECK(r.block(sequence, 0, e) - r.block(sequence, 0, e - 1) ==
                static_cast<std::ptrdiff_t>(shape.page_bytes));
        }
      }
    }
  }
}
