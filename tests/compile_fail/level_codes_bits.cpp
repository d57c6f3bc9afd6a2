// expect: terse::LevelCodes: bits must be 2, 3 or 4: tables of levels have up to 16.
#include "terse/quant/nvfp4.hpp"

#ifdef TERSE_EXPECT_FAIL
struct Levels : terse::NvFp4Levels<terse::NvFp4Spec{}> {
  static constexpr int bits = 8;
};
#else
using Levels = terse::NvFp4Levels<terse::NvFp4Spec{}>;
#endif
template struct terse::LevelCodes<Levels>;
