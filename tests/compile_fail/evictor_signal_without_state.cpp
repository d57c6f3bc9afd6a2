// expect: terse::Compose: the evictor asks for a signal but keeps no state per token, so nothing
// could come of it; add a non-empty `struct TokenState`.
#include "terse/policy/compose.hpp"

struct Forgetful {
  using evictor = Forgetful;
  static constexpr terse::Signal signal = terse::Signal::column_sum;
  static constexpr bool scatters = true;
  struct Params {
    [[nodiscard]] static terse::Status validate() { return {}; }
  };
  struct TokenState {
#ifndef TERSE_EXPECT_FAIL
    float score = 0;
#endif
  };
  static void observe(TokenState&, float) {}
  static void select(terse::TokenList<TokenState>&, const Params&, const terse::SelectContext&) {}
};

using Policy = terse::Compose<Forgetful>;
static_assert(Policy::signal == terse::Signal::column_sum);
