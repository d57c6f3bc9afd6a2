/// H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models
/// (arXiv 2306.14048, section 4): keep the newest tokens and those that have received the most
/// attention, per head.
///
/// The score is the sum of attention probabilities over all queries so far, over kept tokens only,
/// summed over the query group of the KV head (the paper's models have one query head per KV head).
/// `Normalise::per_query` divides by the number of queries that could see the token, a variant that
/// does not favour old tokens; the paper's is `sum`.
#pragma once

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/selection.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct H2O {
  using evictor = H2O;
  static constexpr Signal signal = Signal::column_sum;
  static constexpr bool scatters = true;

  enum class Normalise : std::uint8_t { sum, per_query };

  struct Params {
    int heavy_tokens = 128;   ///< kept for their score, per KV unit
    int recent_tokens = 128;  ///< kept for their age
    int sink_tokens = 0;      ///< first tokens kept whatever their score; the paper has none
    Normalise normalise = Normalise::sum;

    [[nodiscard]] Status validate() const noexcept {
      if (heavy_tokens < 0 || recent_tokens < 1 || sink_tokens < 0) {
        return error(StatusCode::invalid_argument,
                     "terse::H2O: heavy_tokens and sink_tokens must be >= 0, recent_tokens >= 1");
      }
      return {};
    }
  };

  struct TokenState {
    float score = 0.0f;
  };

  TERSE_HOST_DEVICE static void observe(TokenState& state, float column_sum) noexcept {
    state.score += column_sum;
  }

  TERSE_OF_EITHER_PROCESSOR
  template <class Tokens>
  TERSE_HOST_DEVICE static void select(Tokens& tokens, const Params& params,
                                       const SelectContext& context) {
    const int room = params.recent_tokens - context.incoming_tokens;
    const int end = tokens.size() - (room > 0 ? room : 0);
    const int sinks = count_before(tokens, params.sink_tokens);
    const int begin = sinks < end ? sinks : (end > 0 ? end : 0);
    keep_highest(tokens, begin, end, params.heavy_tokens - begin, [&](int i) {
      const float score = tokens.state(i).score;
      if (params.normalise == Normalise::sum) return score;
      return rounded_quotient(score,
                              static_cast<float>(context.length_tokens - tokens.position(i)));
    });
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
