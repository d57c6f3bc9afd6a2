// expect: terse::Compose: the evictor asks for Signal::column_sum but cannot receive it;
// expect: add `static void observe(TokenState&, float column_sum)`.
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
    static terse::Status validate() { return {}; }
  };
  struct TokenState {
    float score = 0;
  };
  static constexpr terse::Signal signal = terse::Signal::column_sum;
  static constexpr bool scatters = true;
  static void select(terse::TokenList<TokenState>&, const Params&, const terse::SelectContext&) {}
#ifndef TERSE_EXPECT_FAIL
  static void observe(TokenState& state, float sum) { state.score += sum; }
#endif
};

template struct terse::Compose<Own>;
