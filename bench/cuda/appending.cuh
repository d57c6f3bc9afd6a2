/// A cache on the device that benchmarks append to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "terse/cuda/kv_cache.cuh"

#include "cuda/device_cache.cuh"

namespace terse::bench {

inline constexpr int kv_heads = 8, head_dim = 128;

struct alignas(128) Aligned {
  std::byte bytes[128];
};

/// How a step's keys and values come.
struct AppendForm {
  bool from_pages = false;  ///< from an engine's pages of 16 tokens, in no order
  bool turns = false;       ///< keys before RoPE
};

/// What else is done to a layer after its append; nothing.
struct OnlyAppended {
  template <class Cache>
  void operator()(Cache&, int) const {}
};

/// A cache whose sequences hold `length` tokens, inside a step of `tokens` more.
template <class Policy, Layout L = PagedLayout<>>
class Appending {
 public:
  using Cache = cuda::KVCache<L, Policy>;

  /// `after_append(cache, layer)`: of the tokens that they hold.
  template <class AfterAppend = OnlyAppended>
  Appending(int sequences, int length, int tokens, int layers,
            const PolicyConfig<PolicyOf<Policy>>& policy = {}, AfterAppend&& after_append = {})
      : calibration_(uses_calibration<PolicyOf<Policy>> ? layers : 0, kv_heads, head_dim),
        layers_(layers),
        rows_(sequences * tokens),
        config_{.num_layers = layers,
                .num_query_heads = 4 * kv_heads,
                .num_kv_heads = kv_heads,
                .head_dim = head_dim,
                .max_sequences = sequences,
                .max_tokens = length + tokens,
                .max_step_tokens = std::max(length, tokens),
                .rope = {.rotary_dim = head_dim}},
        plan_(*Cache::plan(config_, {calibrated(policy)})),
        pages_(plan_.pages_bytes),
        tails_(std::max(plan_.tails_bytes, std::size_t{1})),
        state_(plan_.state_bytes),
        mirror_(plan_.mirror_bytes / sizeof(Aligned)),
        inputs_(static_cast<std::size_t>(layers) * row_halves() *
                static_cast<std::size_t>(std::max(rows_, sequences * length)) * 2),
        cache_(std::move(*Cache::create(config_,
                                        {bytes(pages_),
                                         {tails_.data(), plan_.tails_bytes},
                                         bytes(state_),
                                         {mirror_[0].bytes, plan_.mirror_bytes}},
                                        nullptr, {calibrated(policy)}))) {
    fill_random<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(inputs_.data()), inputs_.size() / 2,
                               5);
    for (int i = 0; i < sequences; ++i) ids_.push_back(*cache_.create_sequence(nullptr));
    if (length > 0) {
      begin(length);
      for (int layer = 0; layer < layers; ++layer) {
        append(layer, nullptr);
        after_append(cache_, layer);
      }
      must(cache_.commit_step(nullptr));
    }
    begin(tokens);
    must(cudaDeviceSynchronize());
  }

  void begin(int tokens) {
    std::vector<StepPart> parts;
    for (const SequenceId id : ids_) parts.push_back({id, tokens});
    must(cache_.begin_step(parts, nullptr));
  }
  void append(int layer, cudaStream_t stream, const AppendForm& form = {}) {
    const F16* keys = inputs_.data() + static_cast<std::size_t>(layer) *
                                           (inputs_.size() / static_cast<std::size_t>(layers_));
    const F16* values = keys + inputs_.size() / static_cast<std::size_t>(layers_) / 2;
    AppendInputs in{HeadRows::dense(keys, Scalar::f16, kv_heads, head_dim),
                    HeadRows::dense(values, Scalar::f16, kv_heads, head_dim)};
    if (form.from_pages) {
      in.source_rows = {source_rows_.data(), source_rows_.size()};
      in.num_source_rows = rows_;
    }
    if (form.turns) in.rope = {turns_.data(), config_.max_tokens};
    must(cache_.append(layer, in, stream));
  }
  /// Makes what a form needs.
  void prepare(const AppendForm& form) {
    constexpr int page_tokens = 16;
    if (form.from_pages) {
      std::vector<std::int64_t> pages(static_cast<std::size_t>(ceil_div(rows_, page_tokens)));
      std::iota(pages.begin(), pages.end(), 0);
      std::shuffle(pages.begin(), pages.end(), std::mt19937(9));
      std::vector<std::int64_t> rows(static_cast<std::size_t>(rows_));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] = pages[i / page_tokens] * page_tokens + static_cast<std::int64_t>(i % page_tokens);
        rows[i] = std::min<std::int64_t>(rows[i], rows_ - 1);
      }
      source_rows_ = DeviceArray<std::int64_t>(rows);
    }
    if (form.turns) {
      const auto each = static_cast<std::size_t>(config_.rope.rotary_dim);
      std::vector<float> turns(static_cast<std::size_t>(config_.max_tokens) * each);
      for (int p = 0; p < config_.max_tokens; ++p) {
        fill_turn(config_.rope, p, turns.data() + static_cast<std::size_t>(p) * each);
      }
      turns_ = DeviceArray<float>(turns);
    }
  }
  void empty() {
    for (const SequenceId id : ids_) must(cache_.truncate(id, 0, nullptr));
    must(cudaDeviceSynchronize());
  }
  [[nodiscard]] Cache& cache() { return cache_; }
  [[nodiscard]] const std::vector<SequenceId>& ids() const { return ids_; }

  /// Bytes that an append of one layer must read and write: inputs, exact copies, sealed codes.
  [[nodiscard]] std::size_t bytes_moved(int length, int tokens) const {
    const ClassShape& shape = cache_.memory_plan().classes[0].shape;
    const auto sequences = static_cast<std::size_t>(config_.max_sequences);
    std::size_t bytes = static_cast<std::size_t>(rows_) * row_halves() * 2 * sizeof(F16);
    if (shape.open) {
      return bytes + static_cast<std::size_t>(rows_) * shape.page_bytes / block_tokens;
    }
    const auto sealed = [&](int n) { return n > 0 ? shape.tail.sealed_before(n - 1) : 0; };
    const auto blocks =
        static_cast<std::size_t>((sealed(length + tokens) - sealed(length)) / block_tokens);
    return 2 * bytes + sequences * blocks * shape.page_bytes;
  }

 private:
  [[nodiscard]] static std::size_t row_halves() {
    return static_cast<std::size_t>(kv_heads) * head_dim;
  }
  static Span<std::byte> bytes(const DeviceArray<std::byte>& a) { return {a.data(), a.size()}; }

  [[nodiscard]] PolicyConfig<PolicyOf<Policy>> calibrated(
      PolicyConfig<PolicyOf<Policy>> policy) const {
    policy.calibration = calibration_.view();
    return policy;
  }

  BenchCalibration calibration_;
  int layers_, rows_;
  CacheConfig config_;
  cuda::CachePlan plan_;
  DeviceArray<std::byte> pages_, tails_, state_;
  std::vector<Aligned> mirror_;
  DeviceArray<F16> inputs_;  // [layer, side, row, head, channel]
  DeviceArray<std::int64_t> source_rows_;
  DeviceArray<float> turns_;  // [position, pair, 2]
  Cache cache_;
  std::vector<SequenceId> ids_;
};

}  // namespace terse::bench
