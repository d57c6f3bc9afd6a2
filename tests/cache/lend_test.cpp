/// Pages lent by an engine's allocator.
#include <algorithm>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

CacheConfig config() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 256,
          .max_step_tokens = 64};
}

using Lending = Driver<PagedLayout<>, Int8>;

PolicyConfig<PolicyOf<Int8>> borrowing() { return {.num_pages = 20, .borrows_pages = true}; }

}  // namespace

TEST_CASE("a cache that borrows uses the lent pages only", "[cache][lend]") {
  Lending d(config(), borrowing());
  const SequenceId s = d.create();
  const Status none = d.step(s, 1);
  CHECK(none.code == StatusCode::no_free_pages);
  CHECK(none.detail == 2);
  const std::int32_t lent[] = {17, 3, 8, 11};
  REQUIRE(d.cache.lend_pages(lent).ok());
  CHECK(d.cache.memory_usage().pages_free == 4);
  REQUIRE(d.fill(s, 128, 64).ok());
  CHECK(d.cache.memory_usage().pages_held == 4);
  CHECK(d.cache.memory_usage().pages_free == 0);
  CHECK(d.step(s, 1).code == StatusCode::no_free_pages);
  for (int layer = 0; layer < 2; ++layer) {
    const auto ref = d.cache.layer(layer);
    for (int entry = 0; entry < 2; ++entry) {
      CHECK(std::count(std::begin(lent), std::end(lent), ref.page(s.index, 0, entry)) == 1);
    }
  }
  Lending own(config());
  REQUIRE(own.create() == s);
  REQUIRE(own.fill(s, 128, 64).ok());
  CHECK(same_bits(d.attend(s), own.attend(s)));
}

TEST_CASE("released pages go back to the engine", "[cache][lend]") {
  Lending d(config(), borrowing());
  const SequenceId s = d.create();
  const std::int32_t lent[] = {1, 2, 3, 4, 5, 6};
  REQUIRE(d.cache.lend_pages(lent).ok());
  REQUIRE(d.fill(s, 128, 64).ok());
  std::vector<std::int32_t> back(8, -7);
  const auto spare = d.cache.take_back_pages({back.data(), back.size()});
  REQUIRE(spare.ok());
  CHECK(*spare == 2);
  REQUIRE(d.cache.truncate(s, 64).ok());
  REQUIRE(d.cache.release(s).ok());
  const auto rest = d.cache.take_back_pages({back.data() + 2, 3});
  REQUIRE(rest.ok());
  CHECK(*rest == 3);
  CHECK(*d.cache.take_back_pages({back.data() + 5, 3}) == 1);
  std::sort(back.begin(), back.begin() + 6);
  CHECK(back == std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, -7, -7});
  CHECK(d.cache.memory_usage().pages_held == 0);
  CHECK(d.cache.memory_usage().pages_free == 0);
  REQUIRE(d.cache.lend_pages(lent).ok());  // and may come again
}

TEST_CASE("lending refuses what could only be wrong, and lends nothing then", "[cache][lend]") {
  Lending d(config(), borrowing());
  const std::int32_t first[] = {4, 5};
  REQUIRE(d.cache.lend_pages(first).ok());
  for (const std::int32_t bad : {4, -1, 20}) {
    const std::int32_t pages[] = {6, 7, bad};
    const Status status = d.cache.lend_pages(pages);
    CHECK(status.code == StatusCode::invalid_argument);
    CHECK(status.detail == bad);
    CHECK(d.cache.memory_usage().pages_free == 2);
  }
  const std::int32_t twice[] = {9, 9};
  CHECK(d.cache.lend_pages(twice).code == StatusCode::invalid_argument);
  CHECK(d.cache.memory_usage().pages_free == 2);
  CHECK(d.cache.lend_pages(twice, 1).code == StatusCode::invalid_argument);
  const std::int32_t again[] = {6, 7, 9};
  CHECK(d.cache.lend_pages(again).ok());

  Lending own(config());
  CHECK(own.cache.lend_pages(first).code == StatusCode::unsupported);
  std::int32_t out[1];
  CHECK(own.cache.take_back_pages(out).status().code == StatusCode::unsupported);
  CHECK(KVCache<ContiguousLayout, Int8>::supports(config(), {borrowing()}).code ==
        StatusCode::invalid_argument);
}
