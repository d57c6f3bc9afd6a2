// One token through a cache and attention: the first thing that a user of the package builds.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include <terse/cpu/attend.hpp>
#include <terse/terse.hpp>

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Memory {
  explicit Memory(std::size_t bytes)
      : size(bytes), data(std::aligned_alloc(128, bytes / 128 * 128 + 128)) {}
  [[nodiscard]] terse::Span<std::byte> span() const {
    return {static_cast<std::byte*>(data.get()), size};
  }
  std::size_t size;
  std::unique_ptr<void, Free> data;
};

/// Attention over one token is that token's value.
bool works() {
  using Cache = terse::KVCache<terse::PagedLayout<>, terse::Int8>;
  const terse::CacheConfig config{
      .num_query_heads = 2, .num_kv_heads = 1, .head_dim = 64, .max_tokens = 64};
  const auto plan = Cache::plan(config);
  if (!plan.ok()) return false;
  const Memory pages(plan->pages_bytes), tails(plan->tails_bytes), state(plan->state_bytes);
  auto cache = Cache::create(config, {pages.span(), tails.span(), state.span()});
  if (!cache.ok()) return false;
  const auto sequence = cache->create_sequence();
  if (!sequence.ok()) return false;
  const terse::StepPart part{*sequence, 1};
  const std::vector<float> x(64, 0.5f), queries(128, 1.0f);
  std::vector<float> output(128);
  const auto rows = terse::HeadRows::dense(x.data(), terse::Scalar::f32, 1, 64);
  if (!cache->begin_step({&part, 1}).ok() || !cache->append(0, {rows, rows, {}}).ok()) return false;
  const Memory workspace(terse::cpu::attend_workspace_bytes(cache->layer(0), {&part, 1}));
  const terse::Status attended = terse::cpu::attend(
      cache->layer(0),
      {{&part, 1}, terse::HeadRows::dense(queries.data(), terse::Scalar::f32, 2, 64)},
      {terse::MutableHeadRows::dense(output.data(), terse::Scalar::f32, 2, 64)}, workspace.span());
  if (!attended.ok() || !cache->commit_step().ok()) return false;
  for (const float y : output) {
    if (!(y > 0.499f && y < 0.501f)) return false;
  }
  return true;
}

}  // namespace

int main() {
  if (!works()) return 1;
  std::printf("terse %s\n", terse::version_string);
  return 0;
}
