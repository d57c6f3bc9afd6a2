/// A cache with enough equal sequences that reading them in turn never meets a warm line.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

namespace terse::bench {

/// More than four times the last-level cache of common servers' share.
inline constexpr std::size_t cold_bytes = std::size_t{160} << 20;

struct Shape {
  int query_heads;
  int kv_heads;
  int head_dim;
  int tokens;
};

class AlignedBytes {
 public:
  explicit AlignedBytes(std::size_t bytes)
      : data_(static_cast<std::byte*>(std::aligned_alloc(128, bytes / 128 * 128 + 128))),
        size_(bytes) {
    if (!data_) throw std::bad_alloc();
  }
  [[nodiscard]] Span<std::byte> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_;
};

inline void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.text);
}

template <class Policy>
class FilledCache {
 public:
  using Cache = KVCache<PagedLayout<>, Policy>;

  /// `cold`: as many copies of the sequence as exceed cold_bytes; otherwise one.
  FilledCache(const Shape& shape, bool cold) {
    CacheConfig config{.num_query_heads = shape.query_heads,
                       .num_kv_heads = shape.kv_heads,
                       .head_dim = shape.head_dim,
                       .max_sequences = 1,
                       .max_tokens = shape.tokens + 64,
                       .max_step_tokens = step_tokens};
    const auto one = Cache::plan(config);
    check(one.status());
    const std::size_t copies = cold ? cold_bytes / one->pages_bytes + 2 : 1;
    config.max_sequences = static_cast<int>(copies);
    const auto plan = Cache::plan(config);
    check(plan.status());
    pages_ = std::make_unique<AlignedBytes>(plan->pages_bytes);
    tails_ = std::make_unique<AlignedBytes>(plan->tails_bytes);
    state_ = std::make_unique<AlignedBytes>(plan->state_bytes);
    auto cache = Cache::create(config, {pages_->span(), tails_->span(), state_->span()});
    check(cache.status());
    cache_ = std::make_unique<Cache>(std::move(*cache));
    fill(shape);
    const auto bytes = cache_->saved_bytes(sequences_.front());
    check(bytes.status());
    std::vector<std::byte> saved(*bytes);
    check(cache_->save(sequences_.front(), 0, {saved.data(), saved.size()}));
    while (sequences_.size() < copies) {
      const auto copy = cache_->load({saved.data(), saved.size()}, 0);
      check(copy.status());
      sequences_.push_back(*copy);
    }
    const auto usage = cache_->memory_usage();
    stored_bytes_ = usage.page_bytes_held / copies + tail_bytes(shape.tokens);
  }

  [[nodiscard]] auto ref() const { return cache_->layer(0); }
  [[nodiscard]] const std::vector<SequenceId>& sequences() const { return sequences_; }
  /// Bytes that attention reads of one sequence: encoded blocks and exact tokens.
  [[nodiscard]] std::size_t stored_bytes() const { return stored_bytes_; }
  [[nodiscard]] double bits_per_element() const {
    return cache_->memory_plan().classes[0].bits_per_element;
  }

 private:
  static constexpr int step_tokens = 64;

  [[nodiscard]] std::size_t tail_bytes(int tokens) const {
    const auto r = cache_->layer(0);
    if (r.shape.open) return 0;
    const auto exact = tokens - r.grids[sequences_.front().index].sealed_end;
    return r.shape.tail_tokens_bytes() * static_cast<std::size_t>(exact) / block_tokens *
           static_cast<std::size_t>(r.shape.unit.units);
  }

  void fill(const Shape& shape) {
    const auto sequence = cache_->create_sequence();
    check(sequence.status());
    sequences_.push_back(*sequence);
    std::minstd_rand generator(7);
    std::normal_distribution<float> normal;
    std::vector<float> keys(
        static_cast<std::size_t>(step_tokens * shape.kv_heads * shape.head_dim));
    std::vector<float> values(keys.size());
    for (int t = 0; t < shape.tokens; t += step_tokens) {
      for (float& x : keys) x = normal(generator);
      for (float& x : values) x = normal(generator);
      const StepPart part{*sequence, step_tokens};
      check(cache_->begin_step({&part, 1}));
      check(cache_->append(
          0,
          {.keys = HeadRows::dense(keys.data(), Scalar::f32, shape.kv_heads, shape.head_dim),
           .values = HeadRows::dense(values.data(), Scalar::f32, shape.kv_heads, shape.head_dim)}));
      check(cache_->commit_step());
    }
  }

  std::unique_ptr<AlignedBytes> pages_, tails_, state_;
  std::unique_ptr<Cache> cache_;
  std::vector<SequenceId> sequences_;
  std::size_t stored_bytes_ = 0;
};

}  // namespace terse::bench
