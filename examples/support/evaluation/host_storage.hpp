#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

#include "evaluation/aligned_memory.hpp"
#include "evaluation/check.hpp"
#include "model/thread_pool.hpp"

namespace terse::examples {

/// One sequence in a terse::KVCache and what it takes to attend to it. All vectors are on the host,
/// dense fp32.
template <Layout L, class Policy>
class HostStorage {
 public:
  using Cache = KVCache<L, Policy>;

  /// \param pool threads of attention; null: the calling thread
  explicit HostStorage(ThreadPool* pool) : pool_(pool) {}

  /// How deep planes are read, from now on.
  void set_planes(const PlaneReading& reading) { params_.planes = reading; }

  /// An empty cache with one sequence, instead of any there was.
  void start(const CacheConfig& config, const typename Cache::Configs& policies) {
    const auto plan = Cache::plan(config, policies);
    check(plan.status());
    pages_.resize(plan->pages_bytes);
    tails_.resize(plan->tails_bytes);
    state_.resize(plan->state_bytes);
    auto cache = Cache::create(config, {pages_.span(), tails_.span(), state_.span()}, policies);
    check(cache.status());
    cache_.emplace(std::move(*cache));
    const auto sequence = cache_->create_sequence();
    check(sequence.status());
    part_.sequence = *sequence;
  }

  void begin_step(int tokens) {
    part_.tokens = tokens;
    column_sums_.assign(static_cast<std::size_t>(cache_->config().num_layers), {});
    check(cache_->begin_step({&part_, 1}));
  }
  void append(int layer, const float* keys, const float* values) {
    const ClassShape& s = shape();
    check(cache_->append(
        layer,
        {.keys = HeadRows::dense(keys, Scalar::f32, s.unit.units * s.unit.key_streams, s.key_width),
         .values = HeadRows::dense(values, Scalar::f32, s.unit.units * s.unit.value_streams,
                                   s.value_width)}));
  }
  /// Attends with the step's queries, and keeps the column sums that the evictor is to be fed.
  void attend(int layer, const float* queries, float* output) {
    const auto ref = cache_->layer(layer);
    const Span<const StepPart> parts{&part_, 1};
    workspace_.resize(cpu::attend_workspace_bytes(ref, parts));
    auto& sums = column_sums_[static_cast<std::size_t>(layer)];
    if constexpr (observes) sums.resize(cache_->column_sum_floats(layer));
    const AttendInputs in{
        parts, HeadRows::dense(queries, Scalar::f32, shape().query_heads, shape().head_dim)};
    bytes_read_.resize(static_cast<std::size_t>(shape().unit.units));
    const AttendOutputs out{
        MutableHeadRows::dense(output, Scalar::f32, shape().query_heads, shape().head_dim), nullptr,
        observes ? sums.data() : nullptr, bytes_read_.data()};
    if (pool_ != nullptr) {
      check(cpu::attend(ref, in, out, workspace_.span(), params_,
                        [this](int count, auto&& f) { pool_->parallel_for(count, f); }));
    } else {
      check(cpu::attend(ref, in, out, workspace_.span(), params_));
    }
  }
  /// Commits the step, then feeds the evictor.
  void commit_step() {
    check(cache_->commit_step());
    for (std::size_t layer = 0; layer < column_sums_.size(); ++layer) {
      const std::vector<float>& sums = column_sums_[layer];
      if (sums.empty()) continue;  // nobody asked, or no attention took place
      check(cache_->observe(static_cast<int>(layer), {&part_, 1}, {sums.data(), sums.size()}));
    }
  }
  void evict(int incoming_tokens) {
    check(cache_->evict(part_.sequence, incoming_tokens).status());
  }
  void compact() { check(cache_->compact(part_.sequence).status()); }

  /// Of all calls of attend so far: SessionMemory::share_read.
  [[nodiscard]] double share_read() const {
    BytesRead sum;
    for (const BytesRead& unit : bytes_read_) sum += unit;
    return sum.share();
  }
  [[nodiscard]] MemoryUsage memory_usage() const { return cache_->memory_usage(); }
  [[nodiscard]] const ClassShape& shape() const { return cache_->memory_plan().classes[0].shape; }

 private:
  static constexpr bool observes = PolicyOf<Policy>::signal == Signal::column_sum;

  ThreadPool* pool_;
  AlignedMemory pages_, tails_, state_, workspace_;
  std::optional<Cache> cache_;
  StepPart part_{};
  AttendParams params_{};
  std::vector<BytesRead> bytes_read_;            ///< `[unit]`
  std::vector<std::vector<float>> column_sums_;  ///< `[layer]`, of the step in progress
};

}  // namespace terse::examples
