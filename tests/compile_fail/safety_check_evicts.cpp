// expect: terse::SafetyCheck judges codes: give it a KVCache of the same policies without
#include "terse/check/safety_check.hpp"
#include "terse/evict/h2o.hpp"
#include "terse/layout/contiguous.hpp"
#include "terse/quant/int8.hpp"

template <class Policy>
using Check = terse::SafetyCheck<terse::KVCache<terse::ContiguousLayout, Policy>>;

#ifdef TERSE_EXPECT_FAIL
static_assert(sizeof(Check<terse::Compose<terse::Int8, terse::H2O>>) > 0);
#else
static_assert(sizeof(Check<terse::Int8>) > 0);
#endif
