// verdict: the good version does not compile
// expect: always wrong
static_assert(sizeof(char) == 2, "always wrong");
