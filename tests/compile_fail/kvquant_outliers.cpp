// expect: terse::KVQuant: outliers_per_thousand must lie within 0 to 20.
// expect: terse::NonUniformGrid: outliers_per_thousand must lie within 0 to 20.
#include "terse/quant/kvquant.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::KVQuant<terse::KVQuantSpec{.outliers_per_thousand = 30}>;
template struct terse::NonUniformGrid<terse::NonUniformSpec{.outliers_per_thousand = 30}>;
#else
template struct terse::KVQuant<terse::KVQuantSpec{.outliers_per_thousand = 20}>;
template struct terse::NonUniformGrid<terse::NonUniformSpec{.outliers_per_thousand = 20}>;
#endif
