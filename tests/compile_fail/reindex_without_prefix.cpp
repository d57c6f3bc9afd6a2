// expect: terse::Compose: Reindex::cache_index needs an evictor whose survivors are a prefix and
// expect: a window
// expect: use StreamingLLM, or keep Reindex::original.
#include "terse/evict/streaming_llm.hpp"
#include "terse/policy/compose.hpp"

struct CacheDistances {
  static constexpr terse::Reindex reindex = terse::Reindex::cache_index;
};

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::SinkWindow, CacheDistances>;
#else
template struct terse::Compose<terse::StreamingLLM, CacheDistances>;
#endif
