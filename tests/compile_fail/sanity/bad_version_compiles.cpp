// verdict: the bad version compiles
// expect: anything
#ifdef TERSE_EXPECT_FAIL
constexpr int unexpected = 1;
#endif
