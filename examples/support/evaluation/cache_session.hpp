#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

#include "evaluation/rope_description.hpp"
#include "evaluation/session.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

/// Throws std::runtime_error with the status's text: a session's calls are not expected to fail.
inline void check(const Status& status) {
  if (!status.ok()) {
    throw std::runtime_error(std::string(status.text) + " (" + std::to_string(status.detail) + ")");
  }
}

/// 128-byte aligned memory, zeroed.
class AlignedMemory {
 public:
  void resize(std::size_t bytes) {
    if (bytes <= size_) return;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(128, bytes / 128 * 128 + 128)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
    size_ = bytes;
  }
  [[nodiscard]] Span<std::byte> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

/// When a policy's evictor runs.
struct EvictionSchedule {
  int every_tokens = 0;        ///< 0: never
  bool before_append = false;  ///< make room first (StreamingLLM) rather than cut afterwards (H2O)
  int compact_every_tokens = 0;  ///< 0: never
};

/// A session over a KVCache of any layout and policy.
template <Layout L, class Policy>
class CacheSession final : public Session {
  using Cache = KVCache<L, Policy>;
  using P = PolicyOf<Policy>;

 public:
  CacheSession(const SessionConfig& config, const typename P::evictor::Params& eviction,
               const EvictionSchedule& schedule, const std::optional<TailSpec>& tail)
      : config_(config), schedule_(schedule) {
    const LlamaConfig& model = config.model->config();
    if (config.chunk_tail) {
      if (schedule_.every_tokens > 0) {
        schedule_ = {.every_tokens = 128, .compact_every_tokens = schedule_.compact_every_tokens};
      }
    }
    cache_config_ = CacheConfig{.num_layers = config.layers,
                                .num_query_heads = model.query_heads,
                                .num_kv_heads = model.kv_heads,
                                .head_dim = model.head_dim,
                                .max_sequences = 1,
                                .max_tokens = config.max_tokens,
                                .max_step_tokens = config.max_step_tokens};
    if constexpr (P::projects || P::reindex == Reindex::cache_index) {
      cache_config_.rope = rope_description(model);
    }
    auto& policy = std::get<0>(policies_);
    policy.eviction = eviction;
    policy.tail = tail;
    if (config.chunk_tail && !keeps_own_tail(tail)) {
      policy.tail = TailSpec{.min_tokens = 1,
                             .granule_tokens = 128,
                             .sink_tokens = tail ? tail->sink_tokens : P::tail.sink_tokens};
    }
    restart(config.first_layer);
  }

  void restart(int first_layer) override {
    config_.first_layer = first_layer;
    set_factors(config_.first_layer, config_.layers);
    const auto planned = Cache::plan(cache_config_, policies_);
    if (!planned.ok()) {
      throw InputError("a policy cannot serve this model: " + std::string(planned.status().text) +
                       " (" + std::to_string(planned.status().detail) + ")");
    }
    pages_.resize(planned->pages_bytes);
    tails_.resize(planned->tails_bytes);
    state_.resize(planned->state_bytes);
    auto cache =
        Cache::create(cache_config_, {pages_.span(), tails_.span(), state_.span()}, policies_);
    check(cache.status());
    cache_.emplace(std::move(*cache));
    const auto sequence = cache_->create_sequence();
    check(sequence.status());
    part_.sequence = *sequence;
    length_ = 0;
  }

  [[nodiscard]] int natural_step_tokens() const override {
    int step = config_.max_step_tokens;
    if (schedule_.every_tokens > 0) step = std::min(step, schedule_.every_tokens);
    return step;
  }

  void begin_step(int tokens) override {
    if (schedule_.before_append && schedule_.every_tokens > 0) {
      check(cache_->evict(part_.sequence, tokens).status());
    }
    part_.tokens = tokens;
    column_sums_.assign(static_cast<std::size_t>(cache_config_.num_layers), {});
    check(cache_->begin_step({&part_, 1}));
  }

  [[nodiscard]] bool projects() const override { return P::projects; }

  void append_layer(int layer, const float* keys, const float* values) override {
    const auto& shape = cache_->memory_plan().classes[0].shape;
    check(cache_->append(
        layer,
        {.keys = HeadRows::dense(keys, Scalar::f32, shape.unit.units * shape.unit.key_streams,
                                 shape.key_width),
         .values = HeadRows::dense(values, Scalar::f32, shape.unit.units * shape.unit.value_streams,
                                   shape.value_width)}));
  }

  void attend_layer(int layer, const float* queries, const float* keys, const float* values,
                    float* output) override {
    append_layer(layer, keys, values);
    const auto& shape = cache_->memory_plan().classes[0].shape;
    const auto ref = cache_->layer(layer);
    const Span<const StepPart> parts{&part_, 1};
    workspace_.resize(cpu::attend_workspace_bytes(ref, parts));
    constexpr bool observes = P::signal == Signal::column_sum;
    auto& sums = column_sums_[static_cast<std::size_t>(layer)];
    if (observes) sums.resize(cache_->column_sum_floats(layer));
    const AttendInputs in{parts,
                          HeadRows::dense(queries, Scalar::f32, shape.query_heads, shape.head_dim)};
    const AttendOutputs out{
        MutableHeadRows::dense(output, Scalar::f32, shape.query_heads, shape.head_dim), nullptr,
        observes ? sums.data() : nullptr};
    if (config_.pool != nullptr) {
      check(cpu::attend(ref, in, out, workspace_.span(), {},
                        [this](int count, auto&& f) { config_.pool->parallel_for(count, f); }));
    } else {
      check(cpu::attend(ref, in, out, workspace_.span()));
    }
  }

  void commit_step() override {
    check(cache_->commit_step());
    if constexpr (P::signal == Signal::column_sum) {
      for (std::size_t layer = 0; layer < column_sums_.size(); ++layer) {
        const std::vector<float>& sums = column_sums_[layer];
        if (sums.empty()) continue;  // no attention was asked for
        check(cache_->observe(static_cast<int>(layer), {&part_, 1}, {sums.data(), sums.size()}));
      }
    }
    const int before = length_;
    length_ += part_.tokens;
    const auto due = [&](int every) { return every > 0 && before / every != length_ / every; };
    if (!schedule_.before_append && due(schedule_.every_tokens)) {
      check(cache_->evict(part_.sequence).status());
    }
    if (due(schedule_.compact_every_tokens)) check(cache_->compact(part_.sequence).status());
  }

  [[nodiscard]] SessionMemory memory() const override {
    const MemoryUsage usage = cache_->memory_usage();
    return {.bits_per_element = cache_->memory_plan().classes[0].bits_per_element,
            .page_bytes = static_cast<double>(usage.page_bytes_held),
            .other_bytes = static_cast<double>(usage.tail_bytes + usage.state_bytes)};
  }

  [[nodiscard]] double generation_overhead_bytes() const override {
    CacheConfig whole = cache_config_;
    whole.num_layers = config_.model->config().layers;
    whole.max_step_tokens = 1;
    auto policies = policies_;
    std::vector<ProjectionFactors> factors;
    if constexpr (P::projects) {
      factors.assign(static_cast<std::size_t>(whole.num_layers), factors_.front());
      std::get<0>(policies).factors = factors;
    }
    const auto planned = Cache::plan(whole, policies);
    check(planned.status());
    return static_cast<double>(planned->tails_bytes + planned->state_bytes);
  }

 private:
  /// Codecs without a tail of their own (llama.cpp's, identity) decode everything in every mode.
  [[nodiscard]] static bool keeps_own_tail(const std::optional<TailSpec>& tail) {
    const TailSpec spec = tail.value_or(P::tail);
    return CanEncodeToken<typename P::key_codec> && CanEncodeToken<typename P::value_codec> &&
           spec.min_tokens == 0;
  }

  void set_factors(int first, int layers) {
    if constexpr (P::projects) {
      factors_.clear();
      for (int l = first; l < first + layers; ++l) {
        const LayerFactors& f = config_.factors->at(static_cast<std::size_t>(l));
        factors_.push_back({f.key_rank, f.value_rank, f.key_up.data(), f.value_up.data()});
      }
      std::get<0>(policies_).factors = factors_;
    }
  }

  SessionConfig config_;
  EvictionSchedule schedule_;
  CacheConfig cache_config_;
  typename Cache::Configs policies_;
  std::vector<ProjectionFactors> factors_;
  AlignedMemory pages_, tails_, state_, workspace_;
  std::vector<std::vector<float>> column_sums_;  ///< `[layer]`, of the step in progress
  std::optional<Cache> cache_;
  StepPart part_;
  int length_ = 0;
};

}  // namespace terse::examples
