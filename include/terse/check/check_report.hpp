/// What a check says, and when it warns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "terse/check/attention_loss.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Where warnings begin. The defaults were chosen on one model (docs/quality.md).
struct CheckLimits {
  double expected_kl = 0.1;    ///< of next-token distributions, nats per token
  double output_error = 0.25;  ///< of a layer's attention, relative
  /// A key channel this many times its head's median is named as the cause of what the keys lose.
  double key_peak = 20;
};

/// Why a layer is at risk.
enum class LayerRisk : std::uint8_t {
  none,
  key_peak,  ///< the keys, one of whose channels is far larger than the others: a bias
  keys,      ///< the keys lose most
  values,    ///< the values lose most
};

struct LayerReport {
  AttentionLoss loss{};
  /// Of the sum over layers of output_error^2, of which more bits in this layer would save as much.
  /// 0 in all layers where the sum is 0 or not finite.
  double share = 0;
  LayerRisk risk = LayerRisk::none;
};

/// Mean of KL(exact || cache) of next-token distributions.
struct ExpectedKl {
  double mean = 0;
  double standard_error = 0;  ///< from the means of blocks of 16 rows; NaN below two blocks
  int rows = 0;               ///< of logits; 0: none were given, and the mean is 0
};

struct CheckReport {
  ExpectedKl expected_kl{};
  Span<const LayerReport> layers{};  ///< `[layer]`, the check's
  int layers_at_risk = 0;
  /// No layer is at risk, logits of all scored rows were given, and the expected KL is within its
  /// limit.
  bool is_safe = false;
};

[[nodiscard]] inline LayerRisk risk_of(const AttentionLoss& loss,
                                       const CheckLimits& limits) noexcept {
  // Written so that NaN is a risk.
  if (loss.output_error <= limits.output_error) return LayerRisk::none;
  if (loss.value_error > loss.key_error) return LayerRisk::values;
  return loss.peak.ratio >= limits.key_peak ? LayerRisk::key_peak : LayerRisk::keys;
}

/// One line about a layer, such as "layer 3: attention is off by 80 %, by its keys: channel 17 of
/// KV head 0 is 40 times the median channel". Ends in 0, cut to the text's size; gives its length
/// without the 0.
[[gnu::noinline]] inline std::size_t describe(int layer, const LayerReport& report,
                                              Span<char> text) noexcept {
  if (text.empty()) return 0;
  const AttentionLoss& loss = report.loss;
  const double percent = 100 * loss.output_error;
  int length = 0;
  switch (report.risk) {
    case LayerRisk::key_peak:
      length = std::snprintf(text.data(), text.size(),
                             "layer %d: attention is off by %.3g %%, by its keys: channel %d of KV "
                             "head %d is %.0f times the median channel",
                             layer, percent, loss.peak.channel, loss.peak.kv_head, loss.peak.ratio);
      break;
    case LayerRisk::keys:
    case LayerRisk::values:
      length =
          std::snprintf(text.data(), text.size(), "layer %d: attention is off by %.3g %%, by %s",
                        layer, percent, report.risk == LayerRisk::keys ? "its keys" : "its values");
      break;
    default:
      length = std::snprintf(text.data(), text.size(), "layer %d: attention is off by %.3g %%",
                             layer, percent);
  }
  const auto most = text.size() - 1;
  return length < 0
             ? 0
             : (static_cast<std::size_t>(length) < most ? static_cast<std::size_t>(length) : most);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
