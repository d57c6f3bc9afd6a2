// expect: terse::Compose: two codecs for the tail; its tokens lie there in one form; keep one.
#include "terse/policy/compose.hpp"
#include "terse/quant/int8.hpp"

using terse::TailCodec;

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<TailCodec<terse::Int8>, TailCodec<terse::Identity>>;
#else
template struct terse::Compose<TailCodec<terse::Int8>>;
#endif
