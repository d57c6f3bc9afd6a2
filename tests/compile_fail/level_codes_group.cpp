// expect: terse::LevelCodes: group must be 0 or a multiple of 8
#include "terse/quant/nvfp4.hpp"

#ifdef TERSE_EXPECT_FAIL
struct Levels : terse::NvFp4Levels<terse::NvFp4Spec{}> {
  static constexpr int group = 20;
};
#else
using Levels = terse::NvFp4Levels<terse::NvFp4Spec{}>;
#endif
template struct terse::LevelCodes<Levels>;
