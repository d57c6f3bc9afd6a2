/// Short ways to write rows down.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "evaluation/cache_session.hpp"
#include "evaluation/device.hpp"
#include "evaluation/host_storage.hpp"
#include "evaluation/policies.hpp"

namespace terse::examples {

using Shared = PagedLayout<HeadPaging::shared>;
using PerHead = PagedLayout<HeadPaging::per_head>;

/// A maker of sessions for a policy; `row(config)` gives its SessionPolicy.
template <Layout L, class Policy, class Row>
SessionMaker maker_of(Row row) {
  return [row](const SessionConfig& config) -> std::unique_ptr<Session> {
    if (config.processor == Processor::cuda) {
      return make_device_session<L, Policy>(config, row(config));
    }
    return std::make_unique<CacheSession<L, Policy, HostStorage>>(config, row(config));
  };
}

/// A maker of sessions for a policy that drops nothing.
template <class Policy>
SessionMaker session_of(std::optional<TailSpec> tail = {}) {
  return maker_of<Shared, Policy>(
      [tail](const SessionConfig&) { return SessionPolicy<Policy>{.tail = tail}; });
}

/// A maker of sessions for planes that are read as `planes` says.
template <class Policy>
SessionMaker planes_session(const PlaneReading& planes) {
  return maker_of<Shared, Policy>(
      [planes](const SessionConfig&) { return SessionPolicy<Policy>{.planes = planes}; });
}

/// Tokens that a budget of `share` of the longest sequence keeps.
inline int budget_tokens(const SessionConfig& config, double share) {
  return std::max(16, static_cast<int>(config.max_tokens * share));
}

/// StreamingLLM's set: four sinks and a window, `share` of the tokens in all.
template <class Policy>
SessionMaker streaming_session(double share) {
  return maker_of<PerHead, Policy>([share](const SessionConfig& config) {
    const int budget = budget_tokens(config, share);
    // In chunks, eviction comes after every 128 tokens and leaves the whole budget.
    return SessionPolicy<Policy>{
        .eviction = {.sink_tokens = 4, .window_tokens = budget - 4},
        .schedule = {.every_tokens = 1, .before_append = !config.chunk_tail}};
  });
}

/// H2O: half of the budget for the newest tokens, half for heavy hitters, as in the paper. In
/// chunks at most the newest 64 and the first four tokens are protected instead.
template <class Policy, HeadPaging Paging = HeadPaging::per_head>
SessionMaker heavy_hitter_session(double share, H2O::Normalise normalise, int every_tokens = 1) {
  return maker_of<PagedLayout<Paging>, Policy>([=](const SessionConfig& config) {
    const int budget = budget_tokens(config, share);
    H2O::Params params{
        .heavy_tokens = budget - budget / 2, .recent_tokens = budget / 2, .normalise = normalise};
    if (config.chunk_tail) {
      params.recent_tokens = std::min(64, budget / 2);
      params.heavy_tokens = budget - params.recent_tokens;
      params.sink_tokens = 4;
    }
    return SessionPolicy<Policy>{
        .eviction = params, .schedule = {.every_tokens = every_tokens, .compact_every_tokens = 64}};
  });
}

inline std::string percent(double share) {
  return share == 0.125 ? "12" : std::to_string(std::lround(share * 100));
}

}  // namespace terse::examples
