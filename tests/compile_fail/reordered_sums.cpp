// expect: terse: compile without -ffast-math or parts of it; codes rely on IEEE arithmetic.
#ifdef TERSE_EXPECT_FAIL
#define __ASSOCIATIVE_MATH__ 1  // what g++ says of -fassociative-math
#endif
#include "terse/config.hpp"
