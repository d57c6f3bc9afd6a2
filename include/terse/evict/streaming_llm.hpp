/// StreamingLLM: Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453,
/// section 3.2): the first tokens and a window of the newest stay, everything between is dropped.
///
/// Distances are those inside the cache. The paper stores keys before RoPE and rotates all of them
/// at every step; here keys stay rotated at their text positions and the query is rotated twice,
/// once for the window and once for the sinks, which is the same numbers because the window is
/// contiguous.
#pragma once

#include "terse/config.hpp"
#include "terse/policy/evictor.hpp"
#include "terse/policy/position.hpp"
#include "terse/policy/selection.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct StreamingLLM {
  using evictor = StreamingLLM;
  static constexpr Reindex reindex = Reindex::cache_index;
  static constexpr bool scatters = false;

  struct Params {
    int sink_tokens = 4;
    int window_tokens = 512;  ///< newest tokens, the one being decoded included

    [[nodiscard]] Status validate() const noexcept {
      if (sink_tokens < 0 || window_tokens < 1) {
        return error(StatusCode::invalid_argument,
                     "terse::StreamingLLM: sink_tokens must be >= 0 and window_tokens >= 1",
                     sink_tokens < 0 ? sink_tokens : window_tokens);
      }
      return {};
    }
  };

  [[nodiscard]] TERSE_HOST_DEVICE static int prefix_tokens(const Params& params) noexcept {
    return params.sink_tokens;
  }

  TERSE_OF_EITHER_PROCESSOR
  template <class Tokens>
  TERSE_HOST_DEVICE static void select(Tokens& tokens, const Params& params,
                                       const SelectContext& context) {
    const std::int64_t window_begin =
        context.length_tokens + context.incoming_tokens - params.window_tokens;
    kill_if(tokens, count_before(tokens, params.sink_tokens), count_before(tokens, window_begin),
            [](int) { return true; });
  }
};

/// The same set of tokens with distances left as in the text.
struct SinkWindow {
  using evictor = SinkWindow;
  static constexpr bool scatters = false;
  using Params = StreamingLLM::Params;
  TERSE_OF_EITHER_PROCESSOR
  template <class Tokens>
  TERSE_HOST_DEVICE static void select(Tokens& tokens, const Params& params,
                                       const SelectContext& context) {
    StreamingLLM::select(tokens, params, context);
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
