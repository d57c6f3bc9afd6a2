/// Test cases that end in each possible way; check_exit_codes.py runs them one at a time.
#include "support/catch.hpp"

TEST_CASE("passes", "[.][pass]") { REQUIRE(0.5 == Approx(0.5000001)); }

TEST_CASE("fails", "[.][fail]") { REQUIRE(terse_test::skip_exit_code == 0); }

TEST_CASE("is skipped", "[.][skip]") {
  TERSE_SKIP("this machine lacks something");
  FAIL("a skip leaves the test case");
}

TEST_CASE("is skipped outside CI", "[.][model]") { TERSE_SKIP_UNLESS_CI("no model file"); }
