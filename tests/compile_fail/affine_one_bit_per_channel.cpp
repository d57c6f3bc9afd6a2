// expect: terse::AffineGroup: codes of 1 bit are for values with a scale per token
// expect: use Granularity::per_token.
#include "terse/quant/affine_group.hpp"

#ifdef TERSE_EXPECT_FAIL
inline constexpr auto granularity = terse::Granularity::per_channel;
#else
inline constexpr auto granularity = terse::Granularity::per_token;
#endif
template struct terse::AffineGroup<terse::AffineSpec{
    .bits = 1, .granularity = granularity, .group = 64, .rule = terse::ScaleRule::least_squares}>;
