#include "report/plot_axis.hpp"

#include <algorithm>

#include "support/catch.hpp"

using terse::examples::PlotAxis;
using terse::examples::round_down_125;

TEST_CASE("PlotAxis maps its range, also upside down", "[report]") {
  const PlotAxis linear(0, 10, 100, 300, false);
  CHECK(linear.place(0) == Approx(100));
  CHECK(linear.place(5) == Approx(200));
  const PlotAxis logarithmic(0.001, 10, 400, 0, true);
  CHECK(logarithmic.place(0.001) == Approx(400));
  CHECK(logarithmic.place(0.1) == Approx(200));
  CHECK(logarithmic.place(10) == Approx(0).margin(1e-9));
}

TEST_CASE("ticks lie inside, rise, and are neither few nor many", "[report]") {
  for (const double low : {1e-6, 0.0021, 0.9, 2300.0}) {
    for (const double ratio : {1.3, 2.5, 9.7, 40.0, 3000.0, 2e5}) {
      for (const bool is_log : {false, true}) {
        CAPTURE(low, ratio, is_log);
        const PlotAxis axis(low, low * ratio, 0, 1000, is_log);
        const auto ticks = axis.ticks();
        CHECK(ticks.size() >= 2);
        CHECK(ticks.size() <= 12);
        CHECK(std::is_sorted(ticks.begin(), ticks.end()));
        for (const double tick : ticks) {
          CHECK(axis.place(tick) > -0.01);
          CHECK(axis.place(tick) < 1000.01);
        }
      }
    }
  }
}

TEST_CASE("ticks are round numbers", "[report]") {
  const auto close = [](const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(),
                                              [](double x, double y) { return x == Approx(y); });
  };
  CHECK(close(PlotAxis(0.0001, 1, 0, 1, true).ticks(), {0.0001, 0.001, 0.01, 0.1, 1}));
  CHECK(close(PlotAxis(0.004, 0.6, 0, 1, true).ticks(), {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5}));
  CHECK(close(PlotAxis(0, 1, 0, 1, false).ticks(), {0, 0.2, 0.4, 0.6, 0.8, 1}));
}

TEST_CASE("round_down_125", "[report]") {
  CHECK(round_down_125(1) == Approx(1));
  CHECK(round_down_125(4.9) == Approx(2));
  CHECK(round_down_125(0.05) == Approx(0.05));
  CHECK(round_down_125(0.00099) == Approx(0.0005));
  CHECK(round_down_125(7e5) == Approx(5e5));
}
