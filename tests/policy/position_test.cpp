// Position rules that policies carry.
#include "terse/policy/position.hpp"

#include "terse/evict/streaming_llm.hpp"
#include "terse/policy/compose.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

TEST_CASE("distances are those of the text unless an evictor asks for those of the cache") {
  static_assert(Compose<>::reindex == Reindex::original);
  static_assert(Compose<SinkWindow>::reindex == Reindex::original);
  static_assert(Compose<StreamingLLM>::reindex == Reindex::cache_index);
}
