/// The evictors' rules, told again for the plain model.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "terse/terse.hpp"

namespace terse::tests {

/// Drops a share of all tokens by a hash of (position, length), also the newest.
struct RandomEvictor {
  static constexpr bool scatters = true;
  struct Params {
    int drop_percent = 30;
    std::uint64_t seed = 1;
    [[nodiscard]] static Status validate() { return {}; }
  };
  [[nodiscard]] static bool drops(std::int64_t position, std::int64_t length, const Params& p) {
    auto z = p.seed * 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(position) * 0x2545f491u +
             static_cast<std::uint64_t>(length) * 0x9e3779b1u;
    z = (z ^ z >> 29) * 0xbf58476d1ce4e5b9ull;
    return static_cast<int>((z ^ z >> 32) % 100) < p.drop_percent;
  }
  static void select(TokenList<NoTokenState>& tokens, const Params& params,
                     const SelectContext& context) {
    for (int i = 0; i < tokens.size(); ++i) {
      if (drops(tokens.position(i), context.length_tokens, params)) tokens.kill(i);
    }
  }
};

/// `select(tokens, params, context)` marks tokens dead; tokens are alive, oldest first.
template <class Evictor>
struct PlainEvictor;

template <>
struct PlainEvictor<NoEviction> {
  template <class Token>
  static void select(std::vector<Token*>&, const NoEviction::Params&, const SelectContext&) {}
};

template <>
struct PlainEvictor<RandomEvictor> {
  template <class Token>
  static void select(std::vector<Token*>& tokens, const RandomEvictor::Params& params,
                     const SelectContext& context) {
    for (Token* t : tokens) {
      t->live = !RandomEvictor::drops(t->position, context.length_tokens, params);
    }
  }
};

template <>
struct PlainEvictor<StreamingLLM> {
  template <class Token>
  static void select(std::vector<Token*>& tokens, const StreamingLLM::Params& params,
                     const SelectContext& context) {
    const std::int64_t end = context.length_tokens + context.incoming_tokens;
    for (Token* t : tokens) {
      t->live = t->position < params.sink_tokens || t->position >= end - params.window_tokens;
    }
  }
};

template <>
struct PlainEvictor<SinkWindow> : PlainEvictor<StreamingLLM> {};

template <>
struct PlainEvictor<H2O> {
  template <class Token>
  static void select(std::vector<Token*>& tokens, const H2O::Params& params,
                     const SelectContext& context) {
    const auto recent =
        static_cast<std::size_t>(std::max(0, params.recent_tokens - context.incoming_tokens));
    std::vector<Token*> candidates = tokens;
    candidates.resize(tokens.size() > recent ? tokens.size() - recent : 0);
    int heavy = params.heavy_tokens;
    std::erase_if(candidates, [&](Token* t) {
      const bool sink = t->position < params.sink_tokens;
      heavy -= sink ? 1 : 0;
      return sink;
    });
    const auto score = [&](const Token* t) {
      return params.normalise == H2O::Normalise::sum
                 ? t->score
                 : t->score / static_cast<float>(context.length_tokens - t->position);
    };
    std::stable_sort(candidates.begin(), candidates.end(), [&](const Token* a, const Token* b) {
      return score(a) != score(b) ? score(a) > score(b) : a->position > b->position;
    });
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      candidates[i]->live = static_cast<int>(i) < heavy;
    }
  }
};

template <>
struct PlainEvictor<AttentionGate> {
  template <class Token>
  static void select(std::vector<Token*>& tokens, const AttentionGate::Params& params,
                     const SelectContext& context) {
    const std::int64_t end =
        context.length_tokens + context.incoming_tokens - params.protected_tokens;
    for (Token* t : tokens) {
      const double keep = 1.0 / (1.0 + std::exp(-double{t->score}));
      if (t->position >= params.sink_tokens && t->position < end && keep <= params.threshold) {
        t->live = false;
      }
    }
  }
};

}  // namespace terse::tests
