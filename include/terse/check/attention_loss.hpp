/// What attention loses where keys and values are read decoded: exact attention beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "terse/cache/attention.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// The key channel that stands out most of the others of its KV head.
struct KeyPeak {
  int kv_head = 0;
  int channel = 0;
  double ratio = 0;  ///< its root mean square over the median channel's
};

/// What one layer's attention loses, over the scored rows and all query heads. Errors of outputs
/// are relative, in L2: infinite beside exact outputs of zero, NaN where the cache's are.
struct AttentionLoss {
  double output_error = 0;  ///< of the cache's attention
  double key_error = 0;     ///< if only keys were read decoded
  double value_error = 0;   ///< if only values were
  /// Root mean square of the logits' errors over decoded tokens, less the mean of a row, which the
  /// softmax cancels.
  double logit_error = 0;
  double attention_kl = 0;  ///< mean of KL(exact attention || attention with decoded keys)
  KeyPeak peak{};
};

namespace detail {

/// One KV head's vectors `[token, KV head, channel]`, exact and decoded.
struct ComparedVectors {
  const float* keys = nullptr;
  const float* values = nullptr;
  const float* decoded_keys = nullptr;
  const float* decoded_values = nullptr;
  int kv_heads = 0;
  int channels = 0;

  [[nodiscard]] std::ptrdiff_t at(int token, int kv_head) const noexcept {
    return (std::ptrdiff_t{token} * kv_heads + kv_head) * channels;
  }
};

/// Sums that add up over rows and heads.
struct LossSums {
  double rows = 0, output = 0, output_error = 0, key_error = 0, value_error = 0, kl = 0;
  double decoded = 0, logit_error = 0;

  LossSums& operator+=(const LossSums& o) noexcept {
    rows += o.rows, output += o.output, output_error += o.output_error, key_error += o.key_error;
    value_error += o.value_error, kl += o.kl, decoded += o.decoded, logit_error += o.logit_error;
    return *this;
  }
  [[nodiscard]] AttentionLoss loss() const noexcept {
    const auto relative = [this](double error) {
      return error == 0 && output == 0 ? 0 : std::sqrt(error / output);
    };
    return {.output_error = relative(output_error),
            .key_error = relative(key_error),
            .value_error = relative(value_error),
            .logit_error = decoded > 0 ? std::sqrt(logit_error / decoded) : 0,
            .attention_kl = rows > 0 ? kl / rows : 0};
  }
};

/// Sixteen sums side by side, which compilers turn into vectors without reordering any.
/// In double, where no product of floats overflows.
[[nodiscard]] inline double product(const float* a, const float* b, int channels) noexcept {
  constexpr int lanes = 16;
  double sums[lanes] = {};
  int c = 0;
  for (; c + lanes <= channels; c += lanes) {
    for (int i = 0; i < lanes; ++i) {
      sums[i] += static_cast<double>(a[c + i]) * static_cast<double>(b[c + i]);
    }
  }
  for (int i = 0; c < channels; ++c, ++i) {
    sums[i] += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  }
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

/// One query head of one row.
struct ComparedRow {
  const std::uint64_t* seen = nullptr;     ///< `[token / 64]`: bits of the tokens that the row sees
  const std::uint64_t* decoded = nullptr;  ///< `[token / 64]`: of these, that it reads decoded
  int blocks = 0;
  double scale = 0;
  double soft_cap = 0;                ///< 0: none
  const float* sink_logit = nullptr;  ///< null: none
  const float* query = nullptr;       ///< `[channel]`
  const float* output = nullptr;      ///< `[channel]`, of the cache's attention
};

/// Adds what a row loses. `scratch`: two numbers per token, blocks of 64 whole, and three per
/// channel.
inline void compare_row(const ComparedVectors& x, int kv_head, const ComparedRow& row,
                        double* scratch, LossSums* sums) noexcept {
  double* const exact_logits = scratch;
  double* const logits = scratch + std::ptrdiff_t{row.blocks} * block_tokens;
  double* const exact_output = logits + std::ptrdiff_t{row.blocks} * block_tokens;
  double* const key_error = exact_output + x.channels;
  double* const value_error = key_error + x.channels;
  const auto for_each_token = [&](auto&& f) {
    for (int b = 0; b < row.blocks; ++b) {
      for (std::uint64_t left = row.seen[b]; left != 0; left &= left - 1) {
        const int i = lowest_one(left);
        f(b * block_tokens + i, (row.decoded[b] >> i & 1u) != 0);
      }
    }
  };
  const auto logit = [&](const float* key) {
    const double l = row.scale * product(row.query, key, x.channels);
    return row.soft_cap > 0 ? row.soft_cap * std::tanh(l / row.soft_cap) : l;
  };
  double exact_peak = -INFINITY, peak = -INFINITY, error_sum = 0, square_sum = 0, count = 0;
  if (row.sink_logit != nullptr) exact_peak = peak = static_cast<double>(*row.sink_logit);
  for_each_token([&](int t, bool is_decoded) {
    exact_logits[t] = logits[t] = logit(x.keys + x.at(t, kv_head));
    if (is_decoded) {
      logits[t] = logit(x.decoded_keys + x.at(t, kv_head));
      const double error = logits[t] - exact_logits[t];
      error_sum += error, square_sum += error * error, count += 1;
    }
    exact_peak = std::max(exact_peak, exact_logits[t]);
    peak = std::max(peak, logits[t]);
  });
  if (exact_peak == -INFINITY) return;  // the row sees nothing
  double exact_sum = 0, sum = 0;
  if (row.sink_logit != nullptr) {
    exact_sum = std::exp(static_cast<double>(*row.sink_logit) - exact_peak);
    sum = std::exp(static_cast<double>(*row.sink_logit) - peak);
  }
  for_each_token([&](int t, bool) {
    exact_sum += std::exp(exact_logits[t] - exact_peak);
    sum += std::exp(logits[t] - peak);
  });
  const double exact_lse = exact_peak + std::log(exact_sum), lse = peak + std::log(sum);
  double kl = 0;
  if (row.sink_logit != nullptr) {
    kl = std::exp(static_cast<double>(*row.sink_logit) - exact_lse) * (lse - exact_lse);
  }
  std::fill(exact_output, exact_output + 3 * std::ptrdiff_t{x.channels}, 0.0);
  for_each_token([&](int t, bool is_decoded) {
    const double exact_p = std::exp(exact_logits[t] - exact_lse);
    const double difference = std::exp(logits[t] - lse) - exact_p;
    kl += exact_p * ((exact_logits[t] - exact_lse) - (logits[t] - lse));
    const float* value = x.values + x.at(t, kv_head);
    for (int c = 0; c < x.channels; ++c) {
      exact_output[c] += exact_p * static_cast<double>(value[c]);
      key_error[c] += difference * static_cast<double>(value[c]);
    }
    if (!is_decoded) return;
    const float* read = x.decoded_values + x.at(t, kv_head);
    for (int c = 0; c < x.channels; ++c) {
      value_error[c] += exact_p * (static_cast<double>(read[c]) - static_cast<double>(value[c]));
    }
  });
  sums->rows += 1;
  sums->kl += kl;
  sums->decoded += count;
  if (count > 0) {  // rounding may leave a variance of zero a hair below it
    sums->logit_error += std::max(square_sum - error_sum * error_sum / count, 0.0);
  }
  for (int c = 0; c < x.channels; ++c) {
    const double error = static_cast<double>(row.output[c]) - exact_output[c];
    sums->output += exact_output[c] * exact_output[c];
    sums->output_error += error * error;
    sums->key_error += key_error[c] * key_error[c];
    sums->value_error += value_error[c] * value_error[c];
  }
}

/// The peak among the key channels of one head. `scratch`: two numbers per channel.
[[nodiscard]] inline KeyPeak find_peak(const ComparedVectors& x, int tokens, int kv_head,
                                       double* scratch) noexcept {
  double* const squares = scratch;
  double* const sorted = scratch + x.channels;
  std::fill(squares, squares + x.channels, 0.0);
  for (int t = 0; t < tokens; ++t) {
    const float* key = x.keys + x.at(t, kv_head);
    for (int c = 0; c < x.channels; ++c) {
      squares[c] += static_cast<double>(key[c]) * static_cast<double>(key[c]);
    }
  }
  std::copy(squares, squares + x.channels, sorted);
  double* const middle = sorted + x.channels / 2;
  std::nth_element(sorted, middle, sorted + x.channels);
  const double* const top = std::max_element(squares, squares + x.channels);
  // A head most of whose channels are 0 has a peak without bound.
  const double ratio = *top > 0 ? std::sqrt(*top / *middle) : 1.0;
  return {kv_head, static_cast<int>(top - squares), ratio};
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
