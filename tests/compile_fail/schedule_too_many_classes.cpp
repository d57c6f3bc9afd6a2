// expect: terse::KVCache: a Schedule holds at most 8 policy classes.
#include "terse/cache/kv_cache.hpp"
#include "terse/layout/contiguous.hpp"
#include "terse/quant/int8.hpp"

using P = terse::Int8;
#ifdef TERSE_EXPECT_FAIL
using Classes = terse::Schedule<P, P, P, P, P, P, P, P, P>;
#else
using Classes = terse::Schedule<P, P, P, P, P, P, P, P>;
#endif

static_assert(terse::KVCache<terse::ContiguousLayout, Classes>::num_classes > 0);
