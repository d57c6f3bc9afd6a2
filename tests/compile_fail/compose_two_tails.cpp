// expect: terse::Compose: two tail rules; keep one, or set PolicyConfig::tail.
#include "terse/policy/compose.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"

using LongTail = terse::Tail<terse::TailSpec{.min_tokens = 64}>;

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::Kivi2, LongTail>;
#else
template struct terse::Compose<terse::Int8, LongTail>;
#endif
