// After creation nothing allocates: the caller's buffers are all the memory that grows with tokens.
#include <cstdlib>
#include <new>
#include <vector>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

namespace {

long allocations = 0;

void* counted(std::size_t bytes) noexcept {
  ++allocations;
  return std::malloc(bytes > 0 ? bytes : 1);
}

void* counted_or_throw(std::size_t bytes) {
  void* p = counted(bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t bytes) { return counted_or_throw(bytes); }
void* operator new[](std::size_t bytes) { return counted_or_throw(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }

namespace terse::tests {
namespace {

using Evicting = Compose<Int4Rotated, H2O>;

/// Allocations of a life: steps, attention, statistics, eviction, compaction, rollback, fork,
/// saving, import and export.
template <class Policy>
long allocations_of_a_life() {
  const CacheConfig config{.num_query_heads = 4,
                           .num_kv_heads = 2,
                           .head_dim = 64,
                           .max_sequences = 2,
                           .max_tokens = 640,
                           .max_step_tokens = 64,
                           .rope = {.rotary_dim = 64}};
  CacheFixture<PagedLayout<>, Policy> fixture(config);
  auto& cache = fixture.cache;
  Random random(3);
  const std::vector<float> keys = random.normals(64 * 2 * 64);
  const std::vector<float> queries = random.normals(4 * 64);
  std::vector<float> output(queries.size()), sums(cache.column_sum_floats(0));
  std::vector<std::byte> saved(std::size_t{1} << 20);
  AlignedBytes workspace(std::size_t{1} << 20);
  std::vector<float> page_keys(10 * 64 * 2 * 64), page_values(page_keys.size());
  const std::vector<std::int32_t> block_table{3, 1, 0, 2, 4, 5, 6, 7, 8, 9};
  std::vector<std::int64_t> source_rows(64);
  const PlainPages pages =
      PlainPages::nhd(Scalar::f32, {10, 64, 2, 64}, PageTable::dense(block_table.data(), 1, 10));

  const long before = allocations;
  bool ok = true;
  const auto sequence = cache.create_sequence();
  ok = ok && sequence.ok();
  const StepPart part{*sequence, 64}, one{*sequence, 1};
  for (int step = 0; ok && step < 6; ++step) {
    ok = ok && cache.begin_step({&part, 1}).ok() &&
         cache
             .append(0, {HeadRows::dense(keys.data(), Scalar::f32, 2, 64),
                         HeadRows::dense(keys.data(), Scalar::f32, 2, 64),
                         {}})
             .ok() &&
         cache.commit_step().ok();
    const auto ref = cache.layer(0);
    ok = ok && cpu::attend_workspace_bytes(ref, {&one, 1}) <= workspace.span().size() &&
         cpu::attend(
             ref, {{&one, 1}, HeadRows::dense(queries.data(), Scalar::f32, 4, 64)},
             {MutableHeadRows::dense(output.data(), Scalar::f32, 4, 64), nullptr, sums.data()},
             workspace.span())
             .ok();
    if constexpr (PolicyOf<Policy>::signal == Signal::column_sum) {
      ok = ok && cache.observe(0, {&one, 1}, {sums.data(), sums.size()}).ok();
    }
  }
  const PageRange range{0, 64, 0};
  ok = ok &&
       export_plain(cache.layer(0), {&*sequence, 1}, pages, {page_keys.data(), page_values.data()})
           .ok();
  ok = ok && cache.begin_step({&part, 1}).ok() &&
       find_source_rows(pages, {&range, 1}, source_rows).ok();
  const auto inputs = inputs_from_pages(pages, cache.layer(0).shape, page_keys.data(),
                                        page_values.data(), source_rows);
  ok = ok && inputs.ok() && cache.append(0, *inputs).ok() && cache.abandon_step().ok();
  ok = ok && cache.begin_step({&one, 1}).ok() && cache.abandon_step().ok();
  const auto bytes = cache.saved_bytes(*sequence);
  ok = ok && bytes.ok() && *bytes <= saved.size() &&
       cache.save(*sequence, 1, {saved.data(), *bytes}).ok();
  const auto loaded = cache.load({saved.data(), *bytes}, 1);
  ok = ok && loaded.ok() && cache.release(*loaded).ok();
  const auto fork = cache.fork(*sequence);
  ok = ok && fork.ok() && cache.truncate(*fork, 200).ok() && cache.release(*fork).ok();
  ok = ok && cache.evict(*sequence).ok() && cache.compact(*sequence).ok();
  const long used = allocations - before;
  REQUIRE(ok);
  return used;
}

}  // namespace

TEST_CASE("the counter counts") {
  const long before = allocations;
  const std::vector<int> some(3);
  CHECK(some.size() == 3);
  CHECK(allocations > before);
}

TEST_CASE("a cache allocates nothing after its creation") {
  CHECK(allocations_of_a_life<Identity>() == 0);
  CHECK(allocations_of_a_life<Kivi2>() == 0);
  CHECK(allocations_of_a_life<Evicting>() == 0);
  CHECK(allocations_of_a_life<Compose<Kivi4, StreamingLLM>>() == 0);
}

}  // namespace terse::tests
