// expect: terse::Planes: planes of 8+4+4, 4+4 or 2+2 bits have a stored order.
#include "terse/quant/planes.hpp"

#ifdef TERSE_EXPECT_FAIL
template struct terse::Planes<terse::PlanesSpec{
    .first_bits = 8, .second_bits = 8, .third_bits = 0}>;
#else
template struct terse::Planes<terse::PlanesSpec{}>;
#endif
