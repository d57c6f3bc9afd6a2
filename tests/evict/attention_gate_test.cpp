// Attention-Gate: a threshold on given logits, and what is protected from it.
#include "terse/evict/attention_gate.hpp"

#include <cmath>

#include "tests/policy/token_unit.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Unit = TokenUnit<AttentionGate>;

/// All tokens with the same logit.
Unit uniform_unit(int length, float logit) {
  Unit unit(length);
  for (int p = 0; p < length; ++p) AttentionGate::admit(unit.state(p), logit);
  return unit;
}

}  // namespace

TEST_CASE("tokens stay where the sigmoid of their logit exceeds the threshold") {
  Random random(1);
  for (const float threshold : {0.1f, 0.5f, 0.9f}) {
    Unit unit(300);
    std::vector<int> want;
    for (int p = 0; p < 300; ++p) {
      const float logit = 3.0f * random.normal();
      AttentionGate::admit(unit.state(p), logit);
      if (1.0 / (1.0 + std::exp(-double{logit})) > threshold || p >= 299) want.push_back(p);
    }
    unit.select({.threshold = threshold, .protected_tokens = 1});
    CHECK(unit.survivors() == want);
  }
}

TEST_CASE("a logit at the threshold does not exceed it") {
  Unit unit = uniform_unit(10, 0.0f);
  unit.select({.threshold = 0.5f, .protected_tokens = 1});
  CHECK(unit.survivors() == positions(9, 10));
}

TEST_CASE("the newest and the first tokens are protected") {
  Unit unit = uniform_unit(200, -5.0f);
  unit.select({.threshold = 0.5f, .protected_tokens = 64, .sink_tokens = 4});
  CHECK(unit.survivors() == join(positions(0, 4), positions(136, 200)));
  Unit all = uniform_unit(50, -5.0f);
  all.select({.threshold = 0.5f, .protected_tokens = 64});
  CHECK(all.survivors() == positions(0, 50));
}

TEST_CASE("tokens that are about to come push the protected window") {
  Unit unit = uniform_unit(100, -5.0f);
  unit.select({.threshold = 0.5f, .protected_tokens = 20}, 8);
  CHECK(unit.survivors() == positions(88, 100));
}

TEST_CASE("a token that outlived the window once is judged when it leaves it") {
  const AttentionGate::Params params{.threshold = 0.5f, .protected_tokens = 10};
  Unit unit(0);
  for (int length = 1; length <= 60; ++length) {
    unit.append();
    AttentionGate::admit(unit.state(length - 1), (length - 1) % 3 == 0 ? 2.0f : -2.0f);
    unit.select(params);
    for (int p = 0; p < length; ++p) {
      REQUIRE(unit.alive(p) == (p >= length - 10 || p % 3 == 0));
    }
  }
}

TEST_CASE("several heads of a unit: any of them keeps the token") {
  AttentionGate::TokenState state;
  AttentionGate::admit(state, -3.0f);
  AttentionGate::admit(state, 1.5f);
  AttentionGate::admit(state, -7.0f);
  CHECK(state.logit == 1.5f);
}

TEST_CASE("a token without a logit is dropped once it leaves the window") {
  Unit unit(30);
  unit.select({.threshold = 0.001f, .protected_tokens = 5});
  CHECK(unit.survivors() == positions(25, 30));
}

TEST_CASE("parameters are validated") {
  CHECK(AttentionGate::Params{}.validate().ok());
  for (const float threshold : {0.0f, 1.0f, -0.5f, 1.5f, std::nanf("")}) {
    CHECK_FALSE(AttentionGate::Params{.threshold = threshold}.validate().ok());
  }
  CHECK_FALSE(AttentionGate::Params{.protected_tokens = 0}.validate().ok());
  CHECK_FALSE(AttentionGate::Params{.sink_tokens = -1}.validate().ok());
}
