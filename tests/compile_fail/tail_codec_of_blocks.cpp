// expect: terse::Compose: the codec of the tail cannot encode a token
// expect: give it `encode_token`.
#include "terse/policy/compose.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::TailCodec<terse::Kivi4::key_codec>>;
#else
template struct terse::Compose<terse::TailCodec<terse::Kivi4::value_codec>>;
#endif
