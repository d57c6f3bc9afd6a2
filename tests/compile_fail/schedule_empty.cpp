// expect: terse::Schedule: name at least one policy.
#include "terse/cache/schedule.hpp"
#include "terse/quant/int8.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Schedule<>;
#else
template struct terse::Schedule<terse::Int8>;
#endif
