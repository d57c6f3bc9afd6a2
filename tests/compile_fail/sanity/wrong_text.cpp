// verdict: no error says: the text that nobody wrote
// expect: the text that nobody wrote
#ifdef TERSE_EXPECT_FAIL
static_assert(sizeof(char) == 2, "another text");
#endif
// The wanted text in the source alone is not enough.
static_assert(sizeof(char) == 1, "the text that nobody wrote");
