// expect: terse::Compose: two evictors; they would disagree about who drops a token; keep
// expect: write one evictor that calls both.
#include "terse/evict/h2o.hpp"
#include "terse/evict/streaming_llm.hpp"
#include "terse/policy/compose.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::H2O, terse::StreamingLLM>;
#else
template struct terse::Compose<terse::H2O>;
#endif
