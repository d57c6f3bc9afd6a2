// expect: terse::Compose: a part provides none of codec, tail, tail_codec, projector, evictor,
// expect: reindex; it would have no effect; remove it
#include "terse/policy/compose.hpp"
#include "terse/quant/int8.hpp"

struct NoPart {};

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::Int8, NoPart>;
#else
template struct terse::Compose<terse::Int8>;
#endif
