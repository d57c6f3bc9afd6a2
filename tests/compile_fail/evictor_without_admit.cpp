// expect: terse::Compose: the evictor asks for Signal::gate_logit but cannot receive it;
// expect: add `static void admit(TokenState&, float gate_logit)`.
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
    static terse::Status validate() { return {}; }
  };
  struct TokenState {
    float score = 0;
  };
  static constexpr terse::Signal signal = terse::Signal::gate_logit;
  static constexpr bool scatters = true;
  static void select(terse::TokenList<TokenState>&, const Params&, const terse::SelectContext&) {}
#ifndef TERSE_EXPECT_FAIL
  static void admit(TokenState& state, float logit) { state.score = logit; }
#endif
};

template struct terse::Compose<Own>;
