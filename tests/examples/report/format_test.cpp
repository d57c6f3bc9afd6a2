#include "report/format.hpp"

#include <cstdlib>
#include <limits>

#include "support/catch.hpp"

using terse::examples::display_columns;
using terse::examples::format_exact;
using terse::examples::format_fixed;
using terse::examples::format_grouped;
using terse::examples::format_significant;
using terse::examples::wrap_text;

namespace {
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();
}  // namespace

TEST_CASE("format_exact reads back as the same number", "[report]") {
  CHECK(format_exact(0.1) == "0.1");
  CHECK(format_exact(23040) == "23040");
  for (const double value : {1.0 / 3, 1e-300, -2.5e17, 5e-324}) {
    CHECK(std::strtod(format_exact(value).c_str(), nullptr) == value);
  }
  CHECK(format_exact(not_a_number) == "nan");
  CHECK(format_exact(-infinity) == "-inf");
}

TEST_CASE("format_fixed", "[report]") {
  CHECK(format_fixed(3.14159, 2) == "3.14");
  CHECK(format_fixed(0.0312, 4, true) == "+0.0312");
  CHECK(format_fixed(-0.0312, 4, true) == "-0.0312");
  CHECK(format_fixed(-0.00001, 4, true) == "0.0000");
  CHECK(format_fixed(0.00001, 4, true) == "0.0000");
  CHECK(format_fixed(not_a_number, 2) == "-");
  CHECK(format_fixed(infinity, 2) == "inf");
}

TEST_CASE("format_significant", "[report]") {
  CHECK(format_significant(0.00333, 2) == "0.0033");
  CHECK(format_significant(0.17446, 3) == "0.174");
  CHECK(format_significant(0.99961, 3) == "1.00");
  CHECK(format_significant(1234.5, 3) == "1234");
  CHECK(format_significant(2.1e-9, 2) == "2.1e-09");
  CHECK(format_significant(0, 3) == "0");
  CHECK(format_significant(not_a_number, 3) == "-");
  CHECK(format_significant(-0.05, 1) == "-0.05");
}

TEST_CASE("format_grouped", "[report]") {
  CHECK(format_grouped(0) == "0");
  CHECK(format_grouped(999) == "999");
  CHECK(format_grouped(1000) == "1,000");
  CHECK(format_grouped(-1234567) == "-1,234,567");
  CHECK(format_grouped(-999) == "-999");
}

TEST_CASE("display_columns counts code points", "[report]") {
  CHECK(display_columns("abc") == 3);
  CHECK(display_columns("\xCE\x94x \xE2\x89\xA4") == 4);
}

TEST_CASE("wrap_text", "[report]") {
  CHECK(wrap_text("one two three", 7) == std::vector<std::string>{"one two", "three"});
  CHECK(wrap_text("a  b", 10) == std::vector<std::string>{"a b"});
  CHECK(wrap_text("unbreakable x", 4) == std::vector<std::string>{"unbreakable", "x"});
  CHECK(wrap_text("first\nsecond", 40) == std::vector<std::string>{"first", "second"});
  CHECK(wrap_text("", 40) == std::vector<std::string>{""});
}
