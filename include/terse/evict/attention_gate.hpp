/// Attention-Gate: In-context KV-Cache Eviction for LLMs via Attention-Gate (arXiv 2410.12876): a
/// trained module gives every token and head a probability of being kept; below a threshold the
/// pair is evicted.
///
/// The gate itself belongs to the model: append takes its logits `[row, kv_head]`, and
/// `sigmoid(logit) > threshold` keeps the token. The newest `protected_tokens` are never dropped,
/// so a token always sees itself; whether the paper protects a window or sinks is not published.
/// Units of several KV heads keep a token if any of their heads does.
#pragma once

#include <cmath>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/evictor.hpp"
#include "terse/policy/selection.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct AttentionGate {
  using evictor = AttentionGate;
  static constexpr Signal signal = Signal::gate_logit;
  static constexpr bool scatters = true;

  struct Params {
    float threshold = 0.5f;     ///< probability in (0, 1)
    int protected_tokens = 64;  ///< newest tokens that are never dropped
    int sink_tokens = 0;        ///< first tokens that are never dropped

    [[nodiscard]] Status validate() const noexcept {
      if (!(threshold > 0.0f && threshold < 1.0f)) {
        return error(StatusCode::invalid_argument,
                     "terse::AttentionGate: threshold must lie between 0 and 1");
      }
      if (protected_tokens < 1 || sink_tokens < 0) {
        return error(StatusCode::invalid_argument,
                     "terse::AttentionGate: protected_tokens must be >= 1, sink_tokens >= 0");
      }
      return {};
    }
  };

  struct TokenState {
    float logit = -INFINITY;
  };

  TERSE_HOST_DEVICE static void admit(TokenState& state, float gate_logit) noexcept {
    if (gate_logit > state.logit) state.logit = gate_logit;
  }

  TERSE_OF_EITHER_PROCESSOR
  template <class Tokens>
  TERSE_HOST_DEVICE static void select(Tokens& tokens, const Params& params,
                                       const SelectContext& context) {
    const float cut = log_odds(params.threshold);
    const std::int64_t end =
        context.length_tokens + context.incoming_tokens - params.protected_tokens;
    kill_if(tokens, count_before(tokens, params.sink_tokens), count_before(tokens, end),
            [&](int i) { return !(tokens.state(i).logit > cut); });
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
