// H2O: heavy hitters and the newest tokens stay.
#include "terse/evict/h2o.hpp"

#include <algorithm>

#include "tests/policy/token_unit.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Unit = TokenUnit<H2O>;

/// One step with uniform attention: every live token and the query's own get 1 / n.
void observe_uniformly(Unit& unit) {
  const auto live = unit.survivors();
  for (const int p : live) H2O::observe(unit.state(p), 1.0f / static_cast<float>(live.size()));
}

}  // namespace

TEST_CASE("scores accumulate") {
  H2O::TokenState state;
  H2O::observe(state, 0.25f);
  H2O::observe(state, 0.5f);
  CHECK(state.score == 0.75f);
}

TEST_CASE("the newest stay whatever their score, of the others the heaviest") {
  Unit unit(100);
  for (int p = 0; p < 100; ++p) unit.state(p).score = static_cast<float>(p % 10);
  unit.select({.heavy_tokens = 9, .recent_tokens = 10});
  // Score 9 is held by 9, 19, ... 89 among the older ninety.
  std::vector<int> want;
  for (int p = 9; p < 90; p += 10) want.push_back(p);
  CHECK(unit.survivors() == join(want, positions(90, 100)));
}

TEST_CASE("budgets at their edges") {
  const auto survivors = [](int length, const H2O::Params& params, int incoming = 0) {
    Unit unit(length);
    unit.select(params, incoming);
    return unit.survivors();
  };
  CHECK(survivors(20, {.heavy_tokens = 10, .recent_tokens = 10}) == positions(0, 20));
  CHECK(survivors(20, {.heavy_tokens = 0, .recent_tokens = 5}) == positions(15, 20));
  CHECK(survivors(3, {.heavy_tokens = 0, .recent_tokens = 5}) == positions(0, 3));
  CHECK(survivors(0, {.heavy_tokens = 0, .recent_tokens = 1}).empty());
}

TEST_CASE("room is left for tokens that are about to come") {
  Unit unit(40);
  for (int p = 0; p < 40; ++p) unit.state(p).score = static_cast<float>(p);
  unit.select({.heavy_tokens = 5, .recent_tokens = 10}, 4);
  CHECK(unit.survivors() == join(positions(29, 34), positions(34, 40)));  // 5 heavy, 6 recent
  Unit all(40);
  for (int p = 0; p < 40; ++p) all.state(p).score = static_cast<float>(40 - p);
  all.select({.heavy_tokens = 5, .recent_tokens = 10}, 64);
  CHECK(all.survivors() == positions(0, 5));
}

TEST_CASE("sinks stay and are paid from the heavy budget") {
  Unit unit(50);
  for (int p = 0; p < 50; ++p) unit.state(p).score = static_cast<float>(p);
  unit.select({.heavy_tokens = 6, .recent_tokens = 10, .sink_tokens = 4});
  CHECK(unit.survivors() == join(positions(0, 4), positions(38, 50)));
  Unit few(50);
  few.select({.heavy_tokens = 2, .recent_tokens = 10, .sink_tokens = 4});
  CHECK(few.survivors() == join(positions(0, 4), positions(40, 50)));
}

TEST_CASE("uniform attention under `sum`: old tokens have received more, so the newest go first") {
  // The paper's sum favours age: at every step the victim is the newest token outside the window.
  const H2O::Params params{.heavy_tokens = 8, .recent_tokens = 4};
  Unit unit(0);
  for (int length = 1; length <= 60; ++length) {
    unit.append();
    observe_uniformly(unit);
    unit.select(params);
  }
  CHECK(unit.survivors() == join(positions(0, 8), positions(56, 60)));
}

TEST_CASE("uniform attention under `per_query`: all are equal up to rounding and history") {
  // Without eviction before, every token has the same mean over the queries that saw it only if
  // those queries saw equally many tokens; give each query the same share instead.
  const H2O::Params params{
      .heavy_tokens = 8, .recent_tokens = 4, .normalise = H2O::Normalise::per_query};
  Unit unit(0);
  for (int length = 1; length <= 60; ++length) {
    unit.append();
    for (int p = 0; p < length; ++p) H2O::observe(unit.state(p), 0.125f);
  }
  unit.select(params);
  // Ties: of equal scores the newer tokens survive.
  CHECK(unit.survivors() == positions(48, 60));
}

TEST_CASE("per_query divides by the queries that could see the token") {
  Unit unit(10);
  unit.state(0).score = 9.0f;  // 10 queries: 0.9
  unit.state(5).score = 5.0f;  // 5 queries: 1.0
  const H2O::Params sum{.heavy_tokens = 1, .recent_tokens = 1};
  H2O::Params per_query = sum;
  per_query.normalise = H2O::Normalise::per_query;
  Unit other = unit;
  unit.select(sum);
  CHECK(unit.survivors() == std::vector<int>{0, 9});
  other.select(per_query);
  CHECK(other.survivors() == std::vector<int>{5, 9});
}

TEST_CASE("the queries that saw a token are counted from its position, whoever is gone before it") {
  Unit unit(100);
  for (int p = 0; p < 90; ++p) {
    if (p != 10 && p != 80) unit.kill(p);
  }
  unit.state(10).score = 45.0f;  // 90 queries: 0.5
  unit.state(80).score = 12.0f;  // 20 queries: 0.6
  unit.select({.heavy_tokens = 1, .recent_tokens = 10, .normalise = H2O::Normalise::per_query});
  CHECK(unit.survivors() == join({80}, positions(90, 100)));
}

TEST_CASE("a budget not below the length changes nothing, whatever the scores") {
  Random random(1);
  Unit unit(200);
  for (int p = 0; p < 200; ++p) unit.state(p).score = random.normal();
  unit.select({.heavy_tokens = 150, .recent_tokens = 50});
  CHECK(unit.survivors() == positions(0, 200));
}

TEST_CASE("evicting at every step and the replay of the algorithm agree") {
  // A plain replay: lists of (position, score), the lowest of the older ones dropped, newest wins.
  Random random(2);
  const H2O::Params params{.heavy_tokens = 10, .recent_tokens = 6};
  Unit unit(0);
  std::vector<std::pair<int, float>> model;
  for (int length = 1; length <= 150; ++length) {
    unit.append();
    model.emplace_back(length - 1, 0.0f);
    for (auto& [p, score] : model) {
      const auto share = static_cast<float>(random.below(16)) / 16.0f;
      score += share;
      H2O::observe(unit.state(p), share);
    }
    unit.select(params);
    if (model.size() > 16) {
      const auto end = model.end() - 6;
      model.erase(std::min_element(model.begin(), end, [](const auto& a, const auto& b) {
        return a.second != b.second ? a.second < b.second : a.first < b.first;
      }));
    }
    std::vector<int> want;
    for (const auto& [p, score] : model) want.push_back(p);
    REQUIRE(unit.survivors() == want);
  }
}

TEST_CASE("budgets are validated") {
  CHECK(H2O::Params{}.validate().ok());
  CHECK(H2O::Params{.heavy_tokens = 0, .recent_tokens = 1}.validate().ok());
  CHECK_FALSE(H2O::Params{.heavy_tokens = -1}.validate().ok());
  CHECK_FALSE(H2O::Params{.recent_tokens = 0}.validate().ok());
  CHECK_FALSE(H2O::Params{.sink_tokens = -1}.validate().ok());
}
