// Reports keep the first failure.
#include "terse/testing/report.hpp"

#include <cmath>

#include "tests/support/catch.hpp"

using terse::testing::Report;
using terse::testing::detail::Checker;
using terse::testing::detail::Sequence;

TEST_CASE("a report without failures is ok") {
  CHECK(Report{}.ok());
  Checker check("subject");
  CHECK(check.expect(true, "a"));
  CHECK(check.report().ok());
  CHECK(check.report().checks == 1);
}

TEST_CASE("the first failure stays, and nothing is checked after it") {
  Checker check("subject");
  CHECK_FALSE(check.expect(false, "first"));
  CHECK_FALSE(check.expect(true, "second"));
  CHECK_FALSE(check.expect(false, "third"));
  CHECK_FALSE(check.ok());
  CHECK(check.report().failure == "subject: first");
  CHECK(check.report().checks == 1);
}

TEST_CASE("the sequence is reproducible and bell-shaped") {
  Sequence a(5), b(5), other(6);
  double sum = 0, squares = 0;
  int different = 0;
  for (int i = 0; i < 10000; ++i) {
    const float x = a.normal();
    REQUIRE(x == b.normal());
    different += x != other.normal() ? 1 : 0;
    sum += x;
    squares += double{x} * x;
  }
  CHECK(different > 9900);
  CHECK(std::fabs(sum / 10000) < 0.05);
  CHECK(squares / 10000 == Approx(1.0).epsilon(0.05));
}
