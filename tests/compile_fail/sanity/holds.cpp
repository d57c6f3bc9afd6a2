// verdict: holds
// expect: terse::sanity: one is not two; nothing adds up; write 1
// expect: a second part
#ifdef TERSE_EXPECT_FAIL
constexpr int two = 1;
#else
constexpr int two = 2;
#endif
static_assert(two == 2, "terse::sanity: one is not two; nothing adds up; write 1");
static_assert(two == 2, "and here a second part of it");
