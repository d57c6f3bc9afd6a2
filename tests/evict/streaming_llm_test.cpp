// StreamingLLM: exactly the sinks and the window stay.
#include "terse/evict/streaming_llm.hpp"

#include <algorithm>
#include <string>

#include "tests/policy/token_unit.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

std::vector<int> kept(int length, int sinks, int window) {
  const int first = std::max(sinks, length - window);
  return join(positions(0, std::min(sinks, length)), positions(first, length));
}

}  // namespace

TEST_CASE("exact sets at every length and budget") {
  for (const int length : {0, 1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300}) {
    for (const int sinks : {0, 1, 4, 70}) {
      for (const int window : {1, 2, 60, 64, 1000}) {
        TokenUnit<StreamingLLM> unit(length);
        unit.select({sinks, window});
        CAPTURE(length, sinks, window);
        REQUIRE(unit.survivors() == kept(length, sinks, window));
      }
    }
  }
}

TEST_CASE("evicting at every token gives the same set as once at the end") {
  const StreamingLLM::Params params{4, 50};
  TokenUnit<StreamingLLM> unit(0);
  for (int length = 1; length <= 300; ++length) {
    unit.append();
    unit.select(params);
    REQUIRE(unit.survivors() == kept(length, 4, 50));
  }
}

TEST_CASE("room is left for tokens that are about to come") {
  TokenUnit<StreamingLLM> unit(100);
  unit.select({4, 20}, 8);
  // With the 8 new ones the window is full.
  CHECK(unit.survivors() == join(positions(0, 4), positions(88, 100)));
  unit.select({4, 20}, 50);
  CHECK(unit.survivors() == positions(0, 4));
}

TEST_CASE("tokens dropped before do not come back and do not count") {
  TokenUnit<StreamingLLM> unit(100);
  for (int p = 0; p < 95; ++p) unit.kill(p);
  unit.select({4, 20});
  CHECK(unit.survivors() == positions(95, 100));
}

TEST_CASE("SinkWindow keeps the same set, with the distances of the text") {
  TokenUnit<SinkWindow> unit(300);
  unit.select({4, 50});
  CHECK(unit.survivors() == kept(300, 4, 50));
  static_assert(StreamingLLM::reindex == Reindex::cache_index);
  static_assert(!StreamingLLM::scatters && !SinkWindow::scatters);
  CHECK(StreamingLLM::prefix_tokens({7, 50}) == 7);
}

TEST_CASE("budgets are validated") {
  CHECK(StreamingLLM::Params{}.validate().ok());
  CHECK(StreamingLLM::Params{0, 1}.validate().ok());
  CHECK_FALSE(StreamingLLM::Params{-1, 5}.validate().ok());
  CHECK_FALSE(StreamingLLM::Params{4, 0}.validate().ok());
  CHECK(StreamingLLM::Params{-3, 5}.validate().detail == -3);
  CHECK(std::string(StreamingLLM::Params{4, 0}.validate().text).find("window_tokens") !=
        std::string::npos);
}
