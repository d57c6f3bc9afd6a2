/// What a check keeps and computes, whatever the type of the cache.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/cache/append.hpp"
#include "terse/cache/attention.hpp"
#include "terse/cache/config.hpp"
#include "terse/check/attention_loss.hpp"
#include "terse/check/check_report.hpp"
#include "terse/check/divergence.hpp"
#include "terse/config.hpp"
#include "terse/core/head_rows.hpp"
#include "terse/core/host_array.hpp"
#include "terse/core/math.hpp"
#include "terse/core/span.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// How much is checked.
struct CheckSpec {
  int tokens = 768;  ///< of one text, from its first token on; the second half is scored
  /// Rows of each layer that are laid beside exact attention, evenly from the scored half.
  int compared_rows = 64;
  CheckLimits limits{};
};

/// One layer of all tokens, rows in the order of positions 0, 1, ...
/// In host memory.
struct CheckInputs {
  HeadRows queries{};  ///< `[token, query_head, head_dim]`, after RoPE
  HeadRows keys{};     ///< `[token, kv_head, head_dim]`, after RoPE
  HeadRows values{};   ///< `[token, kv_head, head_dim]`
};

namespace detail {

/// Bytes aligned as buffers of a cache must be.
class CheckMemory {
 public:
  /// False if there is no memory.
  [[nodiscard]] bool resize(std::size_t bytes) noexcept {
    if (bytes <= view_.size() && view_.data() != nullptr) return true;
    view_ = {};
    memory_ = HostArray<std::byte>(static_cast<std::int64_t>(bytes + record_align_bytes));
    if (memory_.data() == nullptr) return false;
    const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
    view_ = {memory_.data() + (round_up(at, std::uintptr_t{record_align_bytes}) - at), bytes};
    return true;
  }
  [[nodiscard]] Span<std::byte> view() const noexcept { return view_; }

 private:
  HostArray<std::byte> memory_;
  Span<std::byte> view_{};
};

class CheckCore {
 public:
  static constexpr int least_tokens = 128;
  static constexpr int max_tokens = 1 << 16;

  [[nodiscard]] static Status out_of_memory() noexcept {
    return error(StatusCode::unsupported, "terse::SafetyCheck: out of host memory");
  }

  [[nodiscard]] static Status check_spec(const CheckSpec& spec) noexcept {
    if (spec.tokens < least_tokens || spec.tokens > max_tokens) {
      return error(StatusCode::invalid_argument,
                   "terse::CheckSpec: tokens must be in 128..65536; detail: tokens", spec.tokens);
    }
    if (spec.compared_rows < 1) {
      return error(StatusCode::invalid_argument,
                   "terse::CheckSpec: compared_rows must be positive; detail: compared_rows",
                   spec.compared_rows);
    }
    return {};
  }

  /// Precondition: check_spec, and a model that a cache serves.
  [[nodiscard]] Status prepare(const CacheConfig& model, const CheckSpec& spec) noexcept {
    spec_ = spec;
    layers_count_ = model.num_layers;
    query_heads_ = model.num_query_heads;
    kv_heads_ = model.num_kv_heads;
    channels_ = model.head_dim;
    rows_ = scored() < spec.compared_rows ? scored() : spec.compared_rows;
    layers_ = HostArray<LayerReport>(layers_count_);
    checked_ = HostArray<bool>(layers_count_);
    vectors_ = HostArray<float>(4 * vector_floats());
    outputs_ = HostArray<float>(std::int64_t{tokens()} * query_heads_ * channels_);
    queries_ = HostArray<float>(std::int64_t{kv_heads_} * channels_);
    masks_ = HostArray<std::uint64_t>(2 * std::int64_t{rows_} * blocks());
    scratch_ = HostArray<double>(scratch_numbers() * kv_heads_);
    sums_ = HostArray<LossSums>(kv_heads_);
    peaks_ = HostArray<KeyPeak>(kv_heads_);
    kl_ = HostArray<double>(scored());
    if (layers_.data() == nullptr || checked_.data() == nullptr || vectors_.data() == nullptr ||
        outputs_.data() == nullptr || queries_.data() == nullptr || masks_.data() == nullptr ||
        scratch_.data() == nullptr || sums_.data() == nullptr || peaks_.data() == nullptr ||
        kl_.data() == nullptr) {
      return out_of_memory();
    }
    return {};
  }

  [[nodiscard]] int tokens() const noexcept { return spec_.tokens; }
  [[nodiscard]] int first_scored() const noexcept { return spec_.tokens / 2; }
  [[nodiscard]] int layers() const noexcept { return layers_count_; }
  [[nodiscard]] int kv_heads() const noexcept { return kv_heads_; }
  [[nodiscard]] int channels() const noexcept { return channels_; }
  /// 64-token blocks of all tokens.
  [[nodiscard]] int blocks() const noexcept { return ceil_div(spec_.tokens, block_tokens); }
  [[nodiscard]] int compared_rows() const noexcept { return rows_; }
  [[nodiscard]] int position(int compared_row) const noexcept {
    return static_cast<int>(tokens() - 1 - std::int64_t{compared_row} * scored() / rows_);
  }
  /// `[token / 64]`, twice: what a compared row sees, and what of it decoded.
  [[nodiscard]] std::uint64_t* masks(int compared_row) const noexcept {
    return masks_.data() + 2 * std::int64_t{compared_row} * blocks();
  }
  /// Where attention and decoded vectors are to be written.
  [[nodiscard]] MutableHeadRows outputs() const noexcept {
    return MutableHeadRows::dense(outputs_.data(), Scalar::f32, query_heads_, channels_);
  }
  [[nodiscard]] float* decoded_keys() const noexcept {
    return vectors_.data() + 2 * vector_floats();
  }
  [[nodiscard]] float* decoded_values() const noexcept {
    return vectors_.data() + 3 * vector_floats();
  }

  /// What can be wrong with a layer's vectors.
  [[nodiscard]] Status check_layer(int layer, const CheckInputs& in, const MutableHeadRows& output,
                                   const AttendParams& params) const noexcept {
    if (layer < 0 || layer >= layers_count_) {
      return error(StatusCode::invalid_argument, "terse::SafetyCheck: the model has no such layer",
                   layer);
    }
    if (checked_[layer]) {
      return error(StatusCode::wrong_phase, "terse::SafetyCheck: the layer is checked already",
                   layer);
    }
    if (in.queries.data == nullptr || in.keys.data == nullptr || in.values.data == nullptr) {
      return error(StatusCode::null_pointer,
                   "terse::SafetyCheck: queries, keys or values are null");
    }
    if (!params.causal) {
      return error(StatusCode::invalid_argument,
                   "terse::SafetyCheck: rows see no newer tokens; causal must be true");
    }
    if (params.planes.rule != PlaneRule::everything) {
      return error(StatusCode::unsupported,
                   "terse::SafetyCheck: codes are judged as stored, all planes of them; use "
                   "PlaneRule::everything");
    }
    const auto overlaps = [&](const auto& rows, int heads) {
      return rows.row_stride < channels_ || (heads > 1 && rows.head_stride < channels_);
    };
    if (overlaps(in.queries, query_heads_) || overlaps(in.keys, kv_heads_) ||
        overlaps(in.values, kv_heads_) ||
        (output.data != nullptr && overlaps(output, query_heads_))) {
      return error(StatusCode::invalid_argument,
                   "terse::SafetyCheck: a stride is smaller than a vector; detail: the layer",
                   layer);
    }
    // Keys and values too: of layers that share a slot, append sees those of the first only.
    if (!all_finite(in.queries, {}, tokens(), query_heads_, channels_) ||
        !all_finite(in.keys, {}, tokens(), kv_heads_, channels_) ||
        !all_finite(in.values, {}, tokens(), kv_heads_, channels_)) {
      return error(StatusCode::not_finite,
                   "terse::SafetyCheck: queries, keys or values hold NaN or infinity; detail: the "
                   "layer",
                   layer);
    }
    return {};
  }

  /// Lays a layer beside exact attention. Outputs, decoded vectors and masks are those of the
  /// layer. Error: not_finite (attention with exact or with decoded keys; the layer stays
  /// unchecked).
  template <class ParallelFor>
  [[nodiscard]] Status compare(int layer, const CheckInputs& in, const AttendParams& params,
                               ParallelFor& parallel_for) noexcept {
    const ComparedVectors vectors{vectors_.data(), vectors_.data() + vector_floats(),
                                  decoded_keys(),  decoded_values(),
                                  kv_heads_,       channels_};
    parallel_for(kv_heads_, [&](int head) { compare_head(in, vectors, params, head); });
    LossSums total;
    KeyPeak peak;
    for (int head = 0; head < kv_heads_; ++head) {
      total += sums_[head];
      if (peaks_[head].ratio > peak.ratio) peak = peaks_[head];
    }
    if (!std::isfinite(total.output) || !std::isfinite(total.kl)) {
      return error(StatusCode::not_finite,
                   "terse::SafetyCheck: attention with exact or with decoded keys is not finite; "
                   "detail: the layer",
                   layer);
    }
    LayerReport& own = layers_[layer];
    own.loss = total.loss();
    own.loss.peak = peak;
    own.risk = risk_of(own.loss, spec_.limits);
    checked_[layer] = true;
    return {};
  }

  void store_outputs(const MutableHeadRows& to) const noexcept {
    for (int token = 0; token < tokens(); ++token) {
      for (int head = 0; head < query_heads_; ++head) {
        to.store(token, head, channels_, output_of(token, head));
      }
    }
  }

  [[nodiscard]] Status add_logits(const float* exact, const float* decoded, int rows,
                                  std::int64_t vocabulary) noexcept {
    if (exact == nullptr || decoded == nullptr) {
      return error(StatusCode::null_pointer, "terse::SafetyCheck: logits are null");
    }
    if (rows < 1 || vocabulary < 1) {
      return error(StatusCode::invalid_argument,
                   "terse::SafetyCheck: rows and vocabulary must be positive", rows);
    }
    if (rows > scored() - kl_rows_) {
      return error(StatusCode::too_many_tokens,
                   "terse::SafetyCheck: more rows of logits than positions are scored; detail: "
                   "rows that are left",
                   scored() - kl_rows_);
    }
    for (int row = 0; row < rows; ++row) {
      const std::int64_t at = row * vocabulary;
      const double kl = divergence_of_logits(exact + at, decoded + at, vocabulary);
      if (!(kl < static_cast<double>(INFINITY))) {
        return error(StatusCode::not_finite,
                     "terse::SafetyCheck: logits hold NaN or infinity; detail: the row", row);
      }
      kl_[kl_rows_ + row] = kl;
    }
    kl_rows_ += rows;
    return {};
  }

  [[nodiscard]] Expected<CheckReport> report() const noexcept {
    CheckReport result{.expected_kl = expected_kl(),
                       .layers = {layers_.data(), static_cast<std::size_t>(layers_count_)}};
    double squares = 0;
    for (int i = 0; i < layers_count_; ++i) {
      if (!checked_[i]) {
        return error(StatusCode::wrong_phase,
                     "terse::SafetyCheck: a layer was not checked; detail: the layer", i);
      }
      result.layers_at_risk += layers_[i].risk == LayerRisk::none ? 0 : 1;
      squares += layers_[i].loss.output_error * layers_[i].loss.output_error;
    }
    for (int i = 0; i < layers_count_ && squares > 0 && std::isfinite(squares); ++i) {
      const double error = layers_[i].loss.output_error;
      layers_[i].share = error * error / squares;
    }
    result.is_safe = result.layers_at_risk == 0 && kl_rows_ == scored() &&
                     result.expected_kl.mean <= spec_.limits.expected_kl;
    return result;
  }

 private:
  [[nodiscard]] int scored() const noexcept { return spec_.tokens - first_scored(); }
  [[nodiscard]] std::int64_t vector_floats() const noexcept {
    return std::int64_t{tokens()} * kv_heads_ * channels_;
  }
  /// Of compare_row and find_peak.
  [[nodiscard]] std::int64_t scratch_numbers() const noexcept {
    return 2 * std::int64_t{blocks()} * block_tokens + 3 * std::int64_t{channels_};
  }
  [[nodiscard]] float* output_of(int token, int head) const noexcept {
    return outputs_.data() + (std::ptrdiff_t{token} * query_heads_ + head) * channels_;
  }

  /// Rows of the query heads of one KV head.
  void compare_head(const CheckInputs& in, const ComparedVectors& vectors,
                    const AttendParams& params, int kv_head) const noexcept {
    for (int token = 0; token < tokens(); ++token) {
      const std::ptrdiff_t at = vectors.at(token, kv_head);
      in.keys.load(token, kv_head, channels_, vectors_.data() + at);
      in.values.load(token, kv_head, channels_, vectors_.data() + vector_floats() + at);
    }
    double* const scratch = scratch_.data() + scratch_numbers() * kv_head;
    float* const query = queries_.data() + std::ptrdiff_t{kv_head} * channels_;
    peaks_[kv_head] = find_peak(vectors, tokens(), kv_head, scratch);
    const int group = query_heads_ / kv_heads_;
    ComparedRow row{.blocks = blocks(),
                    .scale = params.softmax_scale > 0
                                 ? static_cast<double>(params.softmax_scale)
                                 : 1 / std::sqrt(static_cast<double>(channels_)),
                    .soft_cap = static_cast<double>(params.logit_soft_cap),
                    .query = query};
    LossSums sums;
    for (int i = 0; i < rows_; ++i) {
      row.seen = masks(i);
      row.decoded = row.seen + blocks();
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        in.queries.load(position(i), head, channels_, query);
        row.output = output_of(position(i), head);
        row.sink_logit = params.sink_logits != nullptr ? params.sink_logits + head : nullptr;
        compare_row(vectors, kv_head, row, scratch, &sums);
      }
    }
    sums_[kv_head] = sums;
  }

  [[nodiscard]] ExpectedKl expected_kl() const noexcept {
    constexpr int block_rows = 16;
    ExpectedKl result{.rows = kl_rows_};
    for (int i = 0; i < kl_rows_; ++i) result.mean += kl_[i] / kl_rows_;
    const int num_blocks = kl_rows_ / block_rows;
    double squares = 0;
    for (int b = 0; b < num_blocks; ++b) {
      double mean = 0;
      for (int i = 0; i < block_rows; ++i) mean += kl_[b * block_rows + i] / block_rows;
      squares += (mean - result.mean) * (mean - result.mean);
    }
    result.standard_error =
        num_blocks > 1 ? std::sqrt(squares / (num_blocks - 1) / num_blocks) : std::nan("");
    return result;
  }

  CheckSpec spec_{};
  int layers_count_ = 0, query_heads_ = 0, kv_heads_ = 0, channels_ = 0;
  int rows_ = 0;                   // compared
  HostArray<LayerReport> layers_;  // [layer]
  HostArray<bool> checked_;        // [layer]
  HostArray<float> vectors_;       // exact keys and values, decoded ones: [token, KV head, channel]
  HostArray<float> outputs_;       // [token, query head, channel]
  HostArray<float> queries_;       // [KV head, channel]
  HostArray<std::uint64_t> masks_;  // [compared row, seen and decoded, token / 64]
  HostArray<double> scratch_;       // [KV head, scratch_numbers]
  HostArray<LossSums> sums_;        // [KV head]
  HostArray<KeyPeak> peaks_;        // [KV head]
  HostArray<double> kl_;            // [scored row]
  int kl_rows_ = 0;
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
