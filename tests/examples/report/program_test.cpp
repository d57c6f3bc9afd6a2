#include "report/program.hpp"

#include <iostream>
#include <sstream>
#include <stdexcept>

#include "report/input_error.hpp"
#include "support/catch.hpp"

using terse::examples::InputError;
using terse::examples::run_program;

namespace {

struct Ended {
  int code;
  std::string error_text;
};

Ended ended(const std::function<void()>& body) {
  std::ostringstream captured;
  std::streambuf* const before = std::cerr.rdbuf(captured.rdbuf());
  const int code = run_program("tool", body);
  std::cerr.rdbuf(before);
  return {code, captured.str()};
}

}  // namespace

TEST_CASE("bad input ends with code 2, anything else that is thrown with code 1", "[report]") {
  const Ended good = ended([] {});
  CHECK(good.code == 0);
  CHECK(good.error_text.empty());
  const Ended bad = ended([] { throw InputError("no such file"); });
  CHECK(bad.code == 2);
  CHECK(bad.error_text == "tool: no such file\n");
  const Ended broken = ended([] { throw std::out_of_range("index 7"); });
  CHECK(broken.code == 1);
  CHECK(broken.error_text == "tool: internal error: index 7\n");
}
