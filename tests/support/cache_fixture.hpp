/// A cache with buffers of its own, and short ways to drive it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"
#include "terse/testing/reference_attend.hpp"

namespace terse::tests {

/// 128-byte aligned bytes, exactly `size` of them. The fill reads as NaN in every floating-point
/// format, so that a use of bytes nobody wrote is noticed.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t size, int fill = 0xff) : size_(size) {
    void* data = nullptr;
    if (posix_memalign(&data, 128, size > 0 ? size : 1) != 0) std::abort();
    data_.reset(static_cast<std::byte*>(data));
    if (size > 0) std::memset(data, fill, size);
  }
  [[nodiscard]] Span<std::byte> span() const { return {data_.get(), size_}; }
  [[nodiscard]] AlignedBytes copy() const {
    AlignedBytes other(size_);
    if (size_ > 0) std::memcpy(other.data_.get(), data_.get(), size_);
    return other;
  }
  friend bool operator==(const AlignedBytes& a, const AlignedBytes& b) {
    return a.size_ == b.size_ &&
           (a.size_ == 0 || std::memcmp(a.data_.get(), b.data_.get(), a.size_) == 0);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::size_t size_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

struct OwnedBuffers {
  AlignedBytes pages, tails, state;
  explicit OwnedBuffers(const MemoryPlan& plan)
      : pages(plan.pages_bytes), tails(plan.tails_bytes), state(plan.state_bytes) {}
  OwnedBuffers(AlignedBytes p, AlignedBytes t, AlignedBytes s)
      : pages(std::move(p)), tails(std::move(t)), state(std::move(s)) {}
  [[nodiscard]] Buffers view() const { return {pages.span(), tails.span(), state.span()}; }
  [[nodiscard]] OwnedBuffers copy() const { return {pages.copy(), tails.copy(), state.copy()}; }
  friend bool operator==(const OwnedBuffers&, const OwnedBuffers&) = default;
};

template <Layout L, class Policy>
struct CacheFixture {
  using Cache = KVCache<L, Policy>;
  CacheConfig config;
  typename Cache::Configs policies;
  OwnedBuffers buffers;
  Cache cache;

  explicit CacheFixture(const CacheConfig& c, const typename Cache::Configs& p = {})
      : config(c),
        policies(p),
        buffers(*Cache::plan(c, p)),
        cache(std::move(*Cache::create(c, buffers.view(), p))) {}
};

/// Output and log-sum-exp of one attend call, `[row, query_head, channel]`.
struct Attended {
  std::vector<float> output;
  std::vector<float> lse_ln;
  std::vector<float> column_sums;
  std::vector<BytesRead> bytes_read;  ///< `[part, unit]`, of the vectorised path
  Status status;
};

enum class Path { vectorised, oracle };

template <class Ref>
Attended run_attend(const Ref& r, Span<const StepPart> parts, const std::vector<float>& queries,
                    Path path, const AttendParams& params = {}, bool want_sums = false,
                    const cpu::KernelTable& table = cpu::kernels()) {
  std::size_t rows = 0;
  for (const StepPart& part : parts) rows += static_cast<std::size_t>(part.tokens);
  const int channels = params.latent_output ? r.shape.value_width : r.shape.head_dim;
  const auto heads = static_cast<std::size_t>(r.shape.query_heads);
  Attended result;
  result.output.assign(rows * heads * static_cast<std::size_t>(channels), -7.0f);
  result.lse_ln.assign(rows * heads, -7.0f);
  if (want_sums) {
    result.column_sums.assign(parts.size() * static_cast<std::size_t>(r.shape.unit.units) *
                                  static_cast<std::size_t>(r.shape.entries) * block_tokens,
                              0.0f);
  }
  result.bytes_read.resize(parts.size() * static_cast<std::size_t>(r.shape.unit.units));
  const AttendInputs in{
      parts, HeadRows::dense(queries.data(), Scalar::f32, r.shape.query_heads, r.shape.head_dim)};
  const AttendOutputs out{
      MutableHeadRows::dense(result.output.data(), Scalar::f32, r.shape.query_heads, channels),
      result.lse_ln.data(), want_sums ? result.column_sums.data() : nullptr,
      result.bytes_read.data()};
  if (path == Path::oracle) {
    result.status = testing::attend(r, in, out, params);
  } else {
    AlignedBytes workspace(cpu::attend_workspace_bytes(r, parts, table));
    result.status = cpu::attend(r, in, out, workspace.span(), params, cpu::Serial{}, table);
  }
  return result;
}

/// Relative L2 distance of `a` to `b`.
inline double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace terse::tests
