// The evictor's contract: token lists, concepts, state.
#include "terse/policy/evictor.hpp"

#include <vector>

#include "terse/evict/attention_gate.hpp"
#include "terse/evict/h2o.hpp"
#include "terse/evict/streaming_llm.hpp"

#include "tests/policy/token_unit.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

struct Counting {
  struct Params {
    static Status validate() { return {}; }
  };
  struct TokenState {
    int value = -1;
  };
  static constexpr bool scatters = true;
  static void select(TokenList<TokenState>&, const Params&, const SelectContext&) {}
};

struct NoScatters {
  struct Params {};
  static void select(TokenList<NoTokenState>&, const Params&, const SelectContext&) {}
};

}  // namespace

TEST_CASE("a list shows live tokens oldest first, with their positions and states") {
  TokenUnit<Counting> unit(130);
  unit.kill(0);
  unit.kill(64);
  for (int p = 0; p < 130; ++p) unit.state(p).value = 10 * p;
  unit.visit([](auto& list) {
    REQUIRE(list.size() == 128);
    CHECK(list.position(0) == 1);
    CHECK(list.position(62) == 63);
    CHECK(list.position(63) == 65);
    CHECK(list.position(127) == 129);
    CHECK(list.state(63).value == 650);
    list.state(63).value = 7;
    CHECK(list.scratch().size() >= 128);
  });
  CHECK(unit.state(65).value == 7);
}

TEST_CASE("killing a token clears its bit and leaves the list as it is") {
  TokenUnit<Counting> unit(70);
  unit.visit([](auto& list) {
    list.kill(3);
    list.kill(66);
    list.kill(66);
    CHECK(list.size() == 70);
    CHECK(list.position(66) == 66);
  });
  CHECK_FALSE(unit.alive(3));
  CHECK_FALSE(unit.alive(66));
  CHECK(unit.survivors().size() == 68);
}

TEST_CASE("concepts and state sizes") {
  static_assert(Evictor<NoEviction> && Evictor<Counting> && !Evictor<NoScatters> && !Evictor<int>);
  static_assert(Evictor<H2O> && Evictor<StreamingLLM> && Evictor<SinkWindow> &&
                Evictor<AttentionGate>);
  static_assert(token_state_bytes<NoEviction> == 0 && token_state_bytes<StreamingLLM> == 0);
  static_assert(token_state_bytes<Counting> == 4 && token_state_bytes<H2O> == 4);
  static_assert(terse::detail::signal_of<H2O>() == Signal::column_sum);
  static_assert(terse::detail::signal_of<AttentionGate>() == Signal::gate_logit);
  static_assert(terse::detail::signal_of<NoEviction>() == Signal::none);
  static_assert(HasPrefix<StreamingLLM> && !HasPrefix<SinkWindow> && !HasPrefix<H2O>);
}

TEST_CASE("without an evictor everything stays") {
  TokenUnit<NoEviction> unit(200);
  unit.select({});
  CHECK(unit.survivors() == positions(0, 200));
  CHECK(NoEviction::Params::validate().ok());
}
