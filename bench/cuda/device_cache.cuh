/// A cache view on the device with random codes: as many copies of a batch as make every read cold.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "terse/cuda/attend.cuh"
#include "terse/terse.hpp"

namespace terse::bench {

/// Over three times the second-level cache of an H200 (60 MB), four times that of an H100 (50 MB).
inline constexpr std::size_t cold_device_bytes = std::size_t{200} << 20;

inline void must(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}
inline void must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.text);
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count = 0) : count_(count) {
    if (count > 0) must(cudaMalloc(&data_, count * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    if (count_ > 0) {
      must(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
    }
  }
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), count_(other.count_) {
    other.data_ = nullptr;
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

/// Random codes; 16-bit words that could be parameters are kept to finite numbers near one.
static __global__ void fill_random(std::uint32_t* words, std::size_t count, std::uint32_t seed) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    x ^= x >> 16;
    x ^= ((x & 0x007f007fu) + 0x00010001u) >> 7 & 0x00010001u;  // 0x7f is NaN in e4m3
    // Both halves as fp16 in 2^-4 ... 2^1, any sign; the bytes stay varied.
    words[i] = (x & 0x8fff8fffu) | 0x20002000u | ((x >> 3) & 0x10001000u);
  }
}

struct BatchShape {
  int query_heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  std::vector<int> lengths;
  int rank = 256;  ///< of each latent, where the policy stores some
};

/// Calibration of slots on the device, the same numbers for every stream in memory of its own:
/// matrices near the identity, small feedback.
class BenchCalibration {
 public:
  BenchCalibration(int slots, int heads, int width)
      : kv_heads_(heads),
        head_dim_(width),
        slot_floats_(2 * heads * CalibrationLayout{width}.floats()),
        numbers_(static_cast<std::size_t>(slots * slot_floats_)) {
    const CalibrationLayout at{width};
    std::vector<float> stream(static_cast<std::size_t>(at.floats()));
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (float& x : stream) x = normal(random);
    for (int c = 0; c < width; ++c) stream[static_cast<std::size_t>(at.mean() + c)] = 0.0f;
    for (int c = 0; c < width; ++c) {
      for (const std::ptrdiff_t one :
           {at.weight() + c, at.to_basis() + c * (width + 1), at.from_basis() + c * (width + 1)}) {
        stream[static_cast<std::size_t>(one)] += 1.0f;
      }
    }
    for (std::size_t i = 0; i < numbers_.size(); i += stream.size()) {
      must(cudaMemcpy(numbers_.data() + i, stream.data(), stream.size() * sizeof(float),
                      cudaMemcpyHostToDevice));
    }
    for (int i = 0; i < slots; ++i) {
      const float* keys = numbers_.data() + i * slot_floats_;
      slots_.push_back({keys, keys + slot_floats_ / 2});
    }
  }
  [[nodiscard]] CalibrationView view() const {
    return {{slots_.data(), slots_.size()}, kv_heads_, head_dim_, 1};
  }

 private:
  int kv_heads_, head_dim_;
  std::ptrdiff_t slot_floats_;
  DeviceArray<float> numbers_;
  std::vector<SlotCalibration> slots_;
};

template <class Policy>
class DeviceCache {
 public:
  using Cache = KVCache<PagedLayout<>, Policy>;
  using Ref = typename Cache::template Ref<0>;

  explicit DeviceCache(const BatchShape& batch) : batch_(batch) {
    const int longest = *std::max_element(batch.lengths.begin(), batch.lengths.end());
    CacheConfig config{.num_query_heads = batch.query_heads,
                       .num_kv_heads = batch.kv_heads,
                       .head_dim = batch.head_dim,
                       .max_sequences = static_cast<int>(batch.lengths.size()),
                       .max_tokens = longest,
                       .max_step_tokens = 1};
    typename Cache::Configs policies;
    std::vector<float> host_up;
    ProjectionFactors host_factors{batch.rank, batch.rank, nullptr, nullptr};
    if constexpr (Policy::projects) {
      config.rope.rotary_dim = batch.head_dim;
      host_up.resize(static_cast<std::size_t>(batch.kv_heads * batch.head_dim * batch.rank));
      std::mt19937 random(5);
      std::normal_distribution<float> normal(0.0f, 0.06f);
      for (float& x : host_up) x = normal(random);
      host_factors.key_up = host_factors.value_up = host_up.data();
      std::get<0>(policies).factors = {&host_factors, 1};
    }
    const auto plan = Cache::plan(config, policies);
    must(plan.status());
    up_ = DeviceArray<float>(host_up);
    if constexpr (uses_calibration<PolicyOf<Policy>>) {
      calibration_.emplace(1, batch.kv_heads, batch.head_dim);
    }
    shape_ = plan->classes[0].shape;
    std::size_t pages = 0;
    for (const int length : batch.lengths) pages += static_cast<std::size_t>(blocks_of(length));
    copies_ = static_cast<int>(cold_device_bytes / (pages * shape_.page_bytes) + 2);
    shape_.num_pages = static_cast<std::int64_t>(pages) * copies_;
    build(pages);
  }

  [[nodiscard]] int copies() const { return copies_; }
  [[nodiscard]] const Ref& view(int copy) const { return views_[static_cast<std::size_t>(copy)]; }
  [[nodiscard]] const ClassShape& shape() const { return shape_; }
  [[nodiscard]] std::byte* pages() const { return pages_.data(); }  ///< of all copies

  /// Bytes that one attend call reads: blocks, exact tokens, masks and tables.
  [[nodiscard]] std::size_t bytes_read() const {
    std::size_t bytes = 0;
    for (const int length : batch_.lengths) {
      const int sealed = sealed_blocks(length);
      const auto units = static_cast<std::size_t>(shape_.unit.units);
      bytes += static_cast<std::size_t>(sealed) * (shape_.page_bytes + units * 8 + 4);
      bytes += static_cast<std::size_t>(length - sealed * block_tokens) * units *
               static_cast<std::size_t>(shape_.head_dim) * 4;
    }
    return bytes;
  }

 private:
  static int blocks_of(int length) { return ceil_div(length, block_tokens); }
  [[nodiscard]] int sealed_blocks(int length) const {
    if (shape_.open) return blocks_of(length);
    return static_cast<int>(shape_.tail.sealed_before(length - 1) / block_tokens);
  }

  void build(std::size_t pages_per_copy) {
    const auto sequences = static_cast<std::size_t>(shape_.sequences);
    const auto entries = static_cast<std::size_t>(shape_.entries);
    const auto units = static_cast<std::size_t>(shape_.unit.units);
    std::vector<std::int32_t> ids(pages_per_copy * static_cast<std::size_t>(copies_));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(7));
    std::vector<SequenceRecord> records(sequences);
    std::vector<GridRecord> grids(sequences);
    std::vector<std::int32_t> counts(sequences), first(sequences * units * entries, 0);
    std::vector<std::uint64_t> live(sequences * units * entries, 0);
    std::vector<std::int32_t> table(static_cast<std::size_t>(copies_) * sequences * entries,
                                    no_page);
    std::size_t next = 0;
    for (std::size_t s = 0; s < sequences; ++s) {
      const int length = batch_.lengths[s];
      records[s].length_tokens = length;
      records[s].alive = 1;
      records[s].generation = 1;
      const std::int64_t sealed = std::int64_t{sealed_blocks(length)} * block_tokens;
      grids[s].sealed_end = shape_.open ? length / block_tokens * block_tokens : sealed;
      grids[s].exact_begin = grids[s].sealed_end;
      counts[s] = blocks_of(length);
      for (std::size_t u = 0; u < units; ++u) {
        for (int e = 0; e < counts[s]; ++e) {
          const std::size_t at = (s * units + u) * entries + static_cast<std::size_t>(e);
          first[at] = e * block_tokens;
          const int tokens = std::min(length - e * block_tokens, block_tokens);
          live[at] = tokens == block_tokens ? ~0ull : (1ull << tokens) - 1;
        }
      }
    }
    for (int c = 0; c < copies_; ++c) {
      for (std::size_t s = 0; s < sequences; ++s) {
        for (int e = 0; e < counts[s]; ++e) {
          table[(static_cast<std::size_t>(c) * sequences + s) * entries +
                static_cast<std::size_t>(e)] = ids[next++];
        }
      }
    }
    records_ = DeviceArray<SequenceRecord>(records);
    grids_ = DeviceArray<GridRecord>(grids);
    counts_ = DeviceArray<std::int32_t>(counts);
    first_ = DeviceArray<std::int32_t>(first);
    live_ = DeviceArray<std::uint64_t>(live);
    table_ = DeviceArray<std::int32_t>(table);
    pages_ = DeviceArray<std::byte>(static_cast<std::size_t>(shape_.num_pages) * shape_.page_bytes);
    const std::size_t tail_bytes = sequences * units * shape_.tail_stride_bytes;
    tails_ = DeviceArray<std::byte>(tail_bytes * static_cast<std::size_t>(copies_));
    fill_random<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(pages_.data()), pages_.size() / 4,
                               1);
    if (tails_.size() > 0) {
      fill_random<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(tails_.data()), tails_.size() / 4,
                                 2);
    }
    must(cudaDeviceSynchronize());
    for (int c = 0; c < copies_; ++c) {
      Ref r;
      r.shape = shape_;
      r.pages = pages_.data();
      r.tails = tails_.data() + static_cast<std::size_t>(c) * tail_bytes;
      r.sequences = records_.data();
      r.grids = grids_.data();
      r.entry_counts = counts_.data();
      r.page_table = table_.data() + static_cast<std::size_t>(c) * sequences * entries;
      r.live = live_.data();
      r.first_positions = first_.data();
      if constexpr (Policy::projects) {
        r.rope.rotary_dim = shape_.head_dim;
        r.factors = {batch_.rank, batch_.rank, up_.data(), up_.data()};
      }
      if (calibration_) r.calibration = calibration_->view().slots[0];
      views_.push_back(r);
    }
  }

  BatchShape batch_;
  ClassShape shape_{};
  int copies_ = 0;
  std::vector<Ref> views_;
  DeviceArray<SequenceRecord> records_;
  DeviceArray<GridRecord> grids_;
  DeviceArray<std::int32_t> counts_, first_, table_;
  DeviceArray<std::uint64_t> live_;
  DeviceArray<std::byte> pages_, tails_;
  DeviceArray<float> up_;  ///< `[kv_head, channel, rank]`
  std::optional<BenchCalibration> calibration_;
};

}  // namespace terse::bench
