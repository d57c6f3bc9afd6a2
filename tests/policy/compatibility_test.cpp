// Which parts fit together is decided by their properties, so users' parts count like the
// library's. What must not compile is in tests/compile_fail.
#include "terse/policy/compatibility.hpp"

#include "terse/policy/identity.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

namespace {

struct Params {
  static Status validate() { return {}; }
};

/// A window with a sink prefix that asks for distances inside the cache.
struct OwnWindow {
  using Params = ::Params;
  static constexpr bool scatters = false;
  static int prefix_tokens(const Params&) { return 1; }
  static void select(TokenList<NoTokenState>&, const Params&, const SelectContext&) {}
};

struct OwnScores {
  using Params = ::Params;
  struct TokenState {
    float last = 0;
  };
  static constexpr Signal signal = Signal::column_sum;
  static constexpr bool scatters = true;
  static void observe(TokenState& state, float sum) { state.last = sum; }
  static void select(TokenList<TokenState>&, const Params&, const SelectContext&) {}
};

struct OwnGate : OwnScores {
  static constexpr Signal signal = Signal::gate_logit;
  static void admit(TokenState& state, float logit) { state.last = logit; }
};

template <class E, Reindex R>
constexpr bool fits =
    terse::detail::CheckParts<Identity, Identity, Identity, NoProjection, E, R>::passed;

}  // namespace

TEST_CASE("evictors of users fit where their properties allow it") {
  static_assert(fits<OwnWindow, Reindex::original>);
  static_assert(fits<OwnWindow, Reindex::cache_index>);
  static_assert(fits<OwnScores, Reindex::original>);
  static_assert(fits<OwnGate, Reindex::original>);
  static_assert(fits<NoEviction, Reindex::original>);
}
