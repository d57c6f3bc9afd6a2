// expect: terse::Compose: the evictor's TokenState is not trivially copyable
// expect: use plain numbers.
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
    static terse::Status validate() { return {}; }
  };
  struct TokenState {
    float score = 0;
#ifdef TERSE_EXPECT_FAIL
    TokenState() = default;
    TokenState(const TokenState& other) : score(other.score) {}
#endif
  };
  static constexpr bool scatters = false;
  static void select(terse::TokenList<TokenState>&, const Params&, const terse::SelectContext&) {}
};

template struct terse::Compose<Own>;
