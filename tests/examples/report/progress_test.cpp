#include "report/progress.hpp"

#include <sstream>

#include "support/catch.hpp"

using terse::examples::duration_text;
using terse::examples::ProgressBar;

namespace {

const std::string clear_line = "\r\x1b[2K";

// What stands on the line after the last redraw.
std::string last_line(const std::ostringstream& out) {
  const std::string text = out.str();
  const std::size_t start = text.rfind(clear_line);
  return start == std::string::npos ? text : text.substr(start + clear_line.size());
}

}  // namespace

TEST_CASE("the bar shows share and time left by weight", "[report]") {
  std::ostringstream out;
  double now_s = 100;
  ProgressBar bar(10, out, true, 80, [&now_s] { return now_s; });
  bar.set_label("kivi-2");
  CHECK(last_line(out).find(" 0%  kivi-2") != std::string::npos);
  now_s += 20;
  bar.advance(1);
  // A tenth took 20 s, nine tenths are left.
  CHECK(last_line(out).find(" 10%, 3 min 00 s left  kivi-2") != std::string::npos);
  now_s += 20;
  bar.advance(7);
  CHECK(last_line(out).find(" 80%, 10 s left") != std::string::npos);
  CHECK(last_line(out).find("[###################.....]") == 0);
}

TEST_CASE("the bar clears its line at the end and stays silent after", "[report]") {
  std::ostringstream out;
  {
    ProgressBar bar(2, out, true, 80, [] { return 0.0; });
    bar.advance(1);
    CHECK_FALSE(last_line(out).empty());
    bar.finish();
    CHECK(last_line(out).empty());
    const std::string before = out.str();
    bar.advance(1);
    bar.set_label("late");
    CHECK(out.str() == before);
  }
  CHECK(last_line(out).empty());
}

TEST_CASE("a bar that is not shown writes nothing", "[report]") {
  std::ostringstream out;
  ProgressBar bar(2, out, false, 80, [] { return 0.0; });
  bar.set_label("x");
  bar.advance(1);
  CHECK(out.str().empty());
}

TEST_CASE("redraws are rationed and lines fit the terminal", "[report]") {
  std::ostringstream out;
  double now_s = 0;
  ProgressBar bar(1000, out, true, 30, [&now_s] { return now_s; });
  bar.advance(1);
  const std::size_t drawn_once = out.str().size();
  for (int i = 0; i < 100; ++i) {
    now_s += 0.0005;
    bar.advance(1);
  }
  CHECK(out.str().size() == drawn_once);
  now_s += 10;
  bar.set_label("a label far longer than the line has room for");
  CHECK(last_line(out).size() == 29);
  bar.advance(5000);
  now_s += 1;
  bar.advance(0);
  CHECK(last_line(out).find(" 100%") != std::string::npos);
}

TEST_CASE("a bar without work does not divide by it", "[report]") {
  std::ostringstream out;
  ProgressBar bar(0, out, true, 80, [] { return 5.0; });
  bar.advance(0);
  CHECK(last_line(out).find(" 0%") != std::string::npos);
}

TEST_CASE("duration_text", "[report]") {
  CHECK(duration_text(-1) == "0 s");
  CHECK(duration_text(59.4) == "59 s");
  CHECK(duration_text(59.6) == "1 min 00 s");
  CHECK(duration_text(125) == "2 min 05 s");
  CHECK(duration_text(3725) == "1 h 02 min");
}
