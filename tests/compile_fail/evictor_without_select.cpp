// expect: terse::Compose: an evictor lacks `select` or `scatters`
// expect: see terse/policy/evictor.hpp for the contract.
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
    static terse::Status validate() { return {}; }
  };
  static constexpr bool scatters = false;
#ifndef TERSE_EXPECT_FAIL
  static void select(terse::TokenList<terse::NoTokenState>&, const Params&,
                     const terse::SelectContext&) {}
#endif
};

template struct terse::Compose<Own>;
