// expect: terse::Compose: the codec of the tail has a basis or a calibration of its own
// expect: use one without.
#include "terse/policy/compose.hpp"
#include "terse/quant/int4_rotated.hpp"
#include "terse/quant/int8.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Compose<terse::TailCodec<terse::Int4Rotated>>;
#else
template struct terse::Compose<terse::TailCodec<terse::Int8>>;
#endif
