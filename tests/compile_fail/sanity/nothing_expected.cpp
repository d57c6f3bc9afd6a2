// verdict: no expect line
#ifdef TERSE_EXPECT_FAIL
static_assert(sizeof(char) == 2, "some text");
#endif
