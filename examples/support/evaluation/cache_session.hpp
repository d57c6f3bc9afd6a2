#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "terse/terse.hpp"

#include "evaluation/check.hpp"
#include "evaluation/rope_description.hpp"
#include "evaluation/session.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

/// When a policy's evictor runs.
struct EvictionSchedule {
  int every_tokens = 0;        ///< 0: never
  bool before_append = false;  ///< make room first (StreamingLLM) rather than cut afterwards (H2O)
  int compact_every_tokens = 0;  ///< 0: never
};

/// What a row of the table adds to a policy's type.
template <class Policy>
struct SessionPolicy {
  typename PolicyOf<Policy>::evictor::Params eviction{};
  EvictionSchedule schedule{};
  std::optional<TailSpec> tail{};
  PlaneReading planes{};
};

/// A session over a cache of any layout and policy. `Storage`: HostStorage, or the device's.
template <Layout L, class Policy, template <Layout, class> class Storage>
class CacheSession final : public Session {
  using Cache = typename Storage<L, Policy>::Cache;
  using P = PolicyOf<Policy>;

 public:
  CacheSession(const SessionConfig& config, const SessionPolicy<Policy>& row)
      : config_(config), schedule_(row.schedule), planes_(row.planes), storage_(config.pool) {
    storage_.set_planes(planes_);
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
    policy.eviction = row.eviction;
    policy.tail = row.tail;
    if (config.chunk_tail && !keeps_own_tail(row.tail)) {
      policy.tail = TailSpec{.min_tokens = 1,
                             .granule_tokens = 128,
                             .sink_tokens = row.tail ? row.tail->sink_tokens : P::tail.sink_tokens};
    }
    restart(config.first_layer);
  }

  void restart(int first_layer) override {
    config_.first_layer = first_layer;
    set_factors(config_.first_layer, config_.layers);
    set_calibration(config_.first_layer, config_.layers);
    const auto planned = Cache::plan(cache_config_, policies_);
    if (!planned.ok()) {
      throw InputError("a policy cannot serve this model: " + std::string(planned.status().text) +
                       " (" + std::to_string(planned.status().detail) + ")");
    }
    storage_.start(cache_config_, policies_);
    length_ = 0;
  }

  [[nodiscard]] int natural_step_tokens() const override {
    int step = config_.max_step_tokens;
    if (schedule_.every_tokens > 0) step = std::min(step, schedule_.every_tokens);
    // Queries that are read for together need more planes than one.
    return planes_.rule == PlaneRule::everything ? step : 1;
  }

  void begin_step(int tokens) override {
    if (schedule_.before_append && schedule_.every_tokens > 0) storage_.evict(tokens);
    step_tokens_ = tokens;
    storage_.begin_step(tokens);
  }

  [[nodiscard]] bool projects() const override { return P::projects; }

  void append_layer(int layer, const float* keys, const float* values) override {
    storage_.append(layer, keys, values);
  }

  void attend_layer(int layer, const float* queries, const float* keys, const float* values,
                    float* output) override {
    storage_.append(layer, keys, values);
    storage_.attend(layer, queries, output);
  }

  void commit_step() override {
    storage_.commit_step();
    const int before = length_;
    length_ += step_tokens_;
    const auto due = [&](int every) { return every > 0 && before / every != length_ / every; };
    if (!schedule_.before_append && due(schedule_.every_tokens)) storage_.evict(0);
    if (due(schedule_.compact_every_tokens)) storage_.compact();
  }

  [[nodiscard]] SessionMemory memory() const override {
    const MemoryUsage usage = storage_.memory_usage();
    return {.bits_per_element = storage_.shape().bits_per_element(),
            .page_bytes = static_cast<double>(usage.page_bytes_held),
            .other_bytes = static_cast<double>(usage.tail_bytes + usage.state_bytes),
            .share_read = planes_.rule == PlaneRule::everything
                              ? std::numeric_limits<double>::quiet_NaN()
                              : storage_.share_read()};
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
    std::get<0>(policies).calibration = {};  // takes none of the cache's bytes
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

  void set_calibration(int first, int layers) {
    if constexpr (uses_calibration<P>) {
      if (config_.calibration == nullptr) return;
      CalibrationView& own = std::get<0>(policies_).calibration;
      own = config_.calibration->view();  // of all layers
      own.slots = {own.slots.data() + first, static_cast<std::size_t>(layers)};
    }
  }

  SessionConfig config_;
  EvictionSchedule schedule_;
  PlaneReading planes_;
  CacheConfig cache_config_;
  typename Cache::Configs policies_;
  std::vector<ProjectionFactors> factors_;
  Storage<L, Policy> storage_;
  int step_tokens_ = 0;
  int length_ = 0;
};

}  // namespace terse::examples
