// expect: terse::Compose: the evictor's Params lacks `validate`
// expect: add `terse::Status validate() const`.
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
#ifndef TERSE_EXPECT_FAIL
    static terse::Status validate() { return {}; }
#endif
  };
  static constexpr bool scatters = false;
  static void select(terse::TokenList<terse::NoTokenState>&, const Params&,
                     const terse::SelectContext&) {}
};

template struct terse::Compose<Own>;
