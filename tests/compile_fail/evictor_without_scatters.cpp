// expect: terse::Compose: an evictor lacks `select` or `scatters`
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
    static terse::Status validate() { return {}; }
  };
  static void select(terse::TokenList<terse::NoTokenState>&, const Params&,
                     const terse::SelectContext&) {}
#ifndef TERSE_EXPECT_FAIL
  static constexpr bool scatters = false;
#endif
};

template struct terse::Compose<Own>;
