// expect: terse::DualAxisGrid: bits must be 2, 3 or 4.
// expect: terse::KVarN: key_bits and value_bits must be 2, 3 or 4.
#include "terse/quant/kvarn.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::KVarN<terse::KVarNSpec{.key_bits = 8}>;
template struct terse::DualAxisGrid<terse::DualAxisSpec{.bits = 8}>;
#else
template struct terse::KVarN<terse::KVarNSpec{.key_bits = 3}>;
template struct terse::DualAxisGrid<terse::DualAxisSpec{.bits = 3}>;
#endif
