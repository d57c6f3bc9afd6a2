// expect: terse::SafetyCheck: give it the host's terse::KVCache<Layout, Policy>
#include "terse/check/safety_check.hpp"
#include "terse/layout/contiguous.hpp"
#include "terse/quant/int8.hpp"

struct EnginesCache : terse::KVCache<terse::ContiguousLayout, terse::Int8> {};

#ifdef TERSE_EXPECT_FAIL
static_assert(sizeof(terse::SafetyCheck<EnginesCache>) > 0);
#else
static_assert(sizeof(terse::SafetyCheck<terse::KVCache<terse::ContiguousLayout, terse::Int8>>) > 0);
#endif
