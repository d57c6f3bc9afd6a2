#include "report/label_placement.hpp"

#include <cmath>
#include <cstddef>

#include "support/catch.hpp"

using terse::examples::Box;
using terse::examples::LabelArea;
using terse::examples::LabelRequest;
using terse::examples::overlaps;
using terse::examples::place_labels;

namespace {

Box marker_box(const LabelRequest& request, double radius) {
  return {request.x - radius, request.y - radius, request.x + radius, request.y + radius};
}

LabelArea wide_area() {
  LabelArea area;
  area.bounds = {0, 0, 800, 500};
  return area;
}

}  // namespace

TEST_CASE("a lone label stands to the right of its marker", "[report]") {
  const auto labels = place_labels({{400, 250, 80, 13}}, wide_area());
  REQUIRE(labels.size() == 1);
  CHECK(labels[0].is_placed);
  CHECK_FALSE(labels[0].has_leader);
  CHECK(labels[0].box.left == Approx(408));
  CHECK((labels[0].box.top + labels[0].box.bottom) / 2 == Approx(250));
}

TEST_CASE("a label at the edge turns inwards", "[report]") {
  const auto labels = place_labels({{795, 495, 80, 13}}, wide_area());
  REQUIRE(labels[0].is_placed);
  CHECK(labels[0].box.right <= 800);
  CHECK(labels[0].box.bottom <= 500);
}

TEST_CASE("crowded labels overlap neither each other nor markers", "[report]") {
  std::vector<LabelRequest> requests;
  requests.reserve(27);
  for (int cluster = 0; cluster < 9; ++cluster) {
    // Three markers nearly on top of each other.
    for (int i = 0; i < 3; ++i) {
      requests.push_back({60.0 + 80 * cluster + 3 * i, 120.0 + 6 * i + 4 * cluster, 110, 13});
    }
  }
  const LabelArea area = wide_area();
  const auto labels = place_labels(requests, area);
  REQUIRE(labels.size() == requests.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    CAPTURE(i);
    REQUIRE(labels[i].is_placed);
    CHECK(labels[i].box.left >= 0);
    CHECK(labels[i].box.right <= 800);
    CHECK(labels[i].box.right - labels[i].box.left == Approx(110));
    for (std::size_t j = 0; j < labels.size(); ++j) {
      if (j != i) CHECK_FALSE(overlaps(labels[i].box, labels[j].box));
      CHECK_FALSE(overlaps(labels[i].box, marker_box(requests[j], area.marker_radius)));
    }
    const double distance =
        std::hypot(labels[i].leader_x - requests[i].x, labels[i].leader_y - requests[i].y);
    CHECK(labels[i].has_leader == (distance > area.marker_radius + 7));
  }
}

TEST_CASE("labels without room are left out where that is allowed", "[report]") {
  LabelArea area;
  area.bounds = {0, 0, 120, 30};
  area.may_leave_out = true;
  const std::vector<LabelRequest> requests(6, {60, 15, 100, 13});
  const auto labels = place_labels(requests, area);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (labels[i].is_placed && labels[j].is_placed) {
        CHECK_FALSE(overlaps(labels[i].box, labels[j].box));
      }
    }
  }
  CHECK_FALSE(labels[0].is_placed);
}

TEST_CASE("labels keep clear of unlabelled markers", "[report]") {
  LabelArea area = wide_area();
  area.other_markers = {{430, 250, 0, 0}};
  const auto labels = place_labels({{400, 250, 80, 13}}, area);
  CHECK_FALSE(overlaps(labels[0].box, marker_box(area.other_markers[0], area.marker_radius)));
  CHECK(place_labels({}, area).empty());
}
