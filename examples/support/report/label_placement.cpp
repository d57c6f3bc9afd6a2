#include "report/label_placement.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <numeric>

namespace terse::examples {
namespace {

constexpr std::array distances = {0.0, 7.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0, 94.0, 118.0, 146.0};
constexpr int directions = 24;
constexpr double gap = 3;
constexpr double label_on_label = 4000;
constexpr double label_on_marker = 700;
constexpr double line_on_label = 500;
constexpr double line_on_line = 300;
constexpr double line_on_marker = 150;
constexpr double left_out = 450;
constexpr int most_sweeps = 30;

struct Candidate {
  PlacedLabel label;
  double own_cost = 0;  // distance, direction and markers; nothing of the other labels
};

struct Point {
  double x;
  double y;
};

double cross(Point o, Point a, Point b) {
  return (a.x - o.x) * (b.y - o.y) - (a.y - o.y) * (b.x - o.x);
}

bool lines_cross(Point a, Point b, Point c, Point d) {
  return cross(a, b, c) * cross(a, b, d) < 0 && cross(c, d, a) * cross(c, d, b) < 0;
}

bool line_meets_box(Point a, Point b, const Box& box) {
  const auto inside = [&box](Point p) {
    return p.x > box.left && p.x < box.right && p.y > box.top && p.y < box.bottom;
  };
  return inside(a) || inside(b) ||
         lines_cross(a, b, {box.left, box.top}, {box.right, box.bottom}) ||
         lines_cross(a, b, {box.left, box.bottom}, {box.right, box.top});
}

Box grown(const Box& box, double margin) {
  return {box.left - margin, box.top - margin, box.right + margin, box.bottom + margin};
}

Box marker_box(Point centre, double radius) {
  return {centre.x - radius, centre.y - radius, centre.x + radius, centre.y + radius};
}

std::vector<Candidate> candidates_of(const std::vector<LabelRequest>& requests, std::size_t own,
                                     const LabelArea& area) {
  const LabelRequest& request = requests[own];
  std::vector<Candidate> candidates;
  for (const double distance : distances) {
    for (int direction = 0; direction < directions; ++direction) {
      const double angle = 2 * std::numbers::pi * direction / directions;
      const double dx = std::cos(angle);
      const double dy = -std::sin(angle);
      const double reach = area.marker_radius + gap + distance;
      Candidate candidate;
      PlacedLabel& label = candidate.label;
      label.is_placed = true;
      label.box.left = request.x + dx * reach - request.width * (1 - dx) / 2;
      label.box.top = request.y + dy * reach - request.height * (1 - dy) / 2;
      label.box.right = label.box.left + request.width;
      label.box.bottom = label.box.top + request.height;
      if (label.box.left < area.bounds.left || label.box.right > area.bounds.right ||
          label.box.top < area.bounds.top || label.box.bottom > area.bounds.bottom) {
        continue;
      }
      label.leader_x = std::clamp(request.x, label.box.left, label.box.right);
      label.leader_y = std::clamp(request.y, label.box.top, label.box.bottom);
      label.has_leader = std::hypot(label.leader_x - request.x, label.leader_y - request.y) >
                         area.marker_radius + gap + 4;
      // Beside the marker reads best, to the right before to the left.
      candidate.own_cost = distance * 1.2 + 6 * std::abs(dy) + (dx < 0 ? 2 : 0);
      const auto add_marker = [&](Point centre) {
        const Box marker = marker_box(centre, area.marker_radius + 1);
        if (overlaps(label.box, marker)) candidate.own_cost += label_on_marker;
        const bool is_far = std::hypot(centre.x - request.x, centre.y - request.y) > 1;
        if (label.has_leader && is_far &&
            line_meets_box({request.x, request.y}, {label.leader_x, label.leader_y}, marker)) {
          candidate.own_cost += line_on_marker;
        }
      };
      for (const LabelRequest& other : requests) add_marker({other.x, other.y});
      for (const LabelRequest& other : area.other_markers) add_marker({other.x, other.y});
      candidates.push_back(candidate);
    }
  }
  if (area.may_leave_out || candidates.empty()) {
    Candidate nothing;
    nothing.own_cost = left_out;
    candidates.push_back(nothing);
  }
  return candidates;
}

double pair_cost(const LabelRequest& request_a, const PlacedLabel& a, const LabelRequest& request_b,
                 const PlacedLabel& b) {
  if (!a.is_placed || !b.is_placed) return 0;
  double cost = overlaps(grown(a.box, 1), b.box) ? label_on_label : 0;
  const Point start_a{request_a.x, request_a.y};
  const Point end_a{a.leader_x, a.leader_y};
  const Point start_b{request_b.x, request_b.y};
  const Point end_b{b.leader_x, b.leader_y};
  if (a.has_leader && line_meets_box(start_a, end_a, b.box)) cost += line_on_label;
  if (b.has_leader && line_meets_box(start_b, end_b, a.box)) cost += line_on_label;
  if (a.has_leader && b.has_leader && lines_cross(start_a, end_a, start_b, end_b)) {
    cost += line_on_line;
  }
  return cost;
}

}  // namespace

bool overlaps(const Box& a, const Box& b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

std::vector<PlacedLabel> place_labels(const std::vector<LabelRequest>& requests,
                                      const LabelArea& area) {
  const std::size_t count = requests.size();
  std::vector<std::vector<Candidate>> candidates;
  for (std::size_t i = 0; i < count; ++i) candidates.push_back(candidates_of(requests, i, area));

  std::vector<PlacedLabel> best(count);
  double best_cost = std::numeric_limits<double>::infinity();
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  // The search ends in a local optimum of its order; a few orders find a good one.
  constexpr std::size_t orders = 12;
  for (std::size_t attempt = 0; attempt < orders && attempt < std::max<std::size_t>(count, 1);
       ++attempt) {
    std::vector<PlacedLabel> labels(count);
    std::vector<double> costs(count, 0);
    double cost = 0;
    double last_cost = std::numeric_limits<double>::infinity();
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      cost = 0;
      for (const std::size_t i : order) {
        double least = std::numeric_limits<double>::infinity();
        PlacedLabel chosen;
        for (const Candidate& candidate : candidates[i]) {
          double total = candidate.own_cost;
          for (std::size_t j = 0; j < count && total < least; ++j) {
            if (j != i) {
              total += pair_cost(requests[i], candidate.label, requests[j], labels[j]);
            }
          }
          if (total < least) {
            least = total;
            chosen = candidate.label;
          }
        }
        labels[i] = chosen;
        cost += least;
      }
      if (sweep > 1 && cost >= last_cost) break;
      last_cost = cost;
    }
    if (cost < best_cost) {
      best_cost = cost;
      best = labels;
    }
    std::rotate(order.begin(),
                order.begin() + static_cast<std::ptrdiff_t>(count / orders + 1) %
                                    std::max<std::ptrdiff_t>(1, static_cast<std::ptrdiff_t>(count)),
                order.end());
  }
  return best;
}

}  // namespace terse::examples
