/// Short ways to write rows down.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "evaluation/cache_session.hpp"
#include "evaluation/policies.hpp"

namespace terse::examples {

using Shared = PagedLayout<HeadPaging::shared>;
using PerHead = PagedLayout<HeadPaging::per_head>;

/// A session maker for a policy that drops nothing.
template <class Policy>
auto session_of(std::optional<TailSpec> tail = {}) {
  return [tail](const SessionConfig& config) -> std::unique_ptr<Session> {
    return std::make_unique<CacheSession<Shared, Policy>>(
        config, typename PolicyOf<Policy>::evictor::Params{}, EvictionSchedule{}, tail);
  };
}

/// Tokens that a budget of `share` of the longest sequence keeps.
inline int budget_tokens(const SessionConfig& config, double share) {
  return std::max(16, static_cast<int>(config.max_tokens * share));
}

/// StreamingLLM's set: four sinks and a window, `share` of the tokens in all.
template <class Policy>
auto streaming_session(double share) {
  return [share](const SessionConfig& config) -> std::unique_ptr<Session> {
    const int budget = budget_tokens(config, share);
    // In chunks, eviction comes after every 128 tokens and leaves the whole budget.
    const EvictionSchedule schedule{.every_tokens = 1, .before_append = !config.chunk_tail};
    return std::make_unique<CacheSession<PerHead, Policy>>(
        config, StreamingLLM::Params{.sink_tokens = 4, .window_tokens = budget - 4}, schedule,
        std::optional<TailSpec>{});
  };
}

/// H2O: half of the budget for the newest tokens, half for heavy hitters, as in the paper. In
/// chunks at most the newest 64 and the first four tokens are protected instead.
template <class Policy, HeadPaging Paging = HeadPaging::per_head>
auto heavy_hitter_session(double share, H2O::Normalise normalise, int every_tokens = 1) {
  return [=](const SessionConfig& config) -> std::unique_ptr<Session> {
    const int budget = budget_tokens(config, share);
    H2O::Params params{
        .heavy_tokens = budget - budget / 2, .recent_tokens = budget / 2, .normalise = normalise};
    if (config.chunk_tail) {
      params.recent_tokens = std::min(64, budget / 2);
      params.heavy_tokens = budget - params.recent_tokens;
      params.sink_tokens = 4;
    }
    const EvictionSchedule schedule{.every_tokens = every_tokens, .compact_every_tokens = 64};
    return std::make_unique<CacheSession<PagedLayout<Paging>, Policy>>(config, params, schedule,
                                                                       std::optional<TailSpec>{});
  };
}

inline std::string percent(double share) {
  return share == 0.125 ? "12" : std::to_string(std::lround(share * 100));
}

}  // namespace terse::examples
