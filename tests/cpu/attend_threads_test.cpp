/// Results do not depend on threads, and one view serves many of them at once.
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// Runs items on `threads` threads; a seed shuffles their order.
struct Threads {
  int threads;
  std::uint64_t seed = 0;
  template <class F>
  void operator()(int count, F&& f) const {
    std::vector<int> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    Random random(seed);
    for (std::size_t i = order.size(); seed != 0 && i > 1; --i) {
      std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<int>(i)))]);
    }
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < order.size(); i = next++) f(order[i]);
    };
    std::vector<std::thread> workers;
    for (int t = 1; t < threads; ++t) workers.emplace_back(work);
    work();
    for (std::thread& w : workers) w.join();
  }
};

template <class Ref, class ParallelFor>
Attended attend_with(const Ref& r, Span<const StepPart> parts, const std::vector<float>& queries,
                     const ParallelFor& parallel_for) {
  Attended result;
  const auto heads = static_cast<std::size_t>(r.shape.query_heads);
  result.output.assign(queries.size(), -7.0f);
  result.lse_ln.assign(queries.size() / static_cast<std::size_t>(r.shape.head_dim), -7.0f);
  result.column_sums.assign(parts.size() * heads * static_cast<std::size_t>(r.shape.entries) * 64,
                            0.0f);
  AlignedBytes workspace(cpu::attend_workspace_bytes(r, parts));
  result.status =
      cpu::attend(r,
                  AttendInputs{parts, HeadRows::dense(queries.data(), Scalar::f32,
                                                      r.shape.query_heads, r.shape.head_dim)},
                  AttendOutputs{MutableHeadRows::dense(result.output.data(), Scalar::f32,
                                                       r.shape.query_heads, r.shape.head_dim),
                                result.lse_ln.data(), result.column_sums.data()},
                  workspace.span(), {}, parallel_for);
  return result;
}

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 6,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 3000,
          .max_step_tokens = 128,
          .rope = {.rotary_dim = 64}};
}

template <class P>
struct Filled : Driver<PagedLayout<>, P> {
  StepPart parts[2];
  std::vector<float> queries;
  Filled() : Driver<PagedLayout<>, P>(config()) {
    const SequenceId a = this->create(), b = this->create();
    REQUIRE(this->fill(a, 2500, 128).ok());  // several splits
    REQUIRE(this->fill(b, 100, 100).ok());
    REQUIRE(this->cache.evict(a).ok());
    parts[0] = {a, 2};
    parts[1] = {b, 30};
    queries = query_rows(this->shape(), 5, 0, 32);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("threads and their order change no bit", "[attend][threads]", Int4Rotated, Kivi2,
                   (Compose<Int8, StreamingLLM>)) {
  const Filled<TestType> d;
  const auto r = d.cache.layer(0);
  const Attended serial = attend_with(r, d.parts, d.queries, cpu::Serial{});
  for (const int threads : {1, 2, 5}) {
    for (const std::uint64_t seed : {0u, 1u, 2u}) {
      CHECK(same_bits(attend_with(r, d.parts, d.queries, Threads{threads, seed}), serial));
    }
  }
}

TEST_CASE("many attend calls run on one view at once", "[attend][threads]") {
  const Filled<Kivi2> d;
  const auto r = d.cache.layer(0);
  const OwnedBuffers before = d.buffers.copy();
  const Attended alone = attend_with(r, d.parts, d.queries, cpu::Serial{});
  std::vector<Attended> results(8);
  Threads{4}(8, [&](int i) {
    results[static_cast<std::size_t>(i)] = attend_with(r, d.parts, d.queries, Threads{1 + i % 2});
  });
  for (const Attended& one : results) CHECK(same_bits(one, alone));
  CHECK(before == d.buffers);
}

TEST_CASE("codes do not depend on the thread that appends", "[attend][threads]") {
  Driver<PagedLayout<>, Kivi4> here(config()), there(config());
  const SequenceId s = here.create();
  REQUIRE(there.create() == s);
  REQUIRE(here.fill(s, 300, 100).ok());
  Status status = error(StatusCode::unsupported, "not run");
  std::thread([&] { status = there.fill(s, 300, 100); }).join();
  REQUIRE(status.ok());
  CHECK(here.buffers.pages == there.buffers.pages);
  CHECK(here.buffers.tails == there.buffers.tails);
}
