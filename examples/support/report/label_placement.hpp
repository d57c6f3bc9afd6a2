#pragma once

#include <vector>

namespace terse::examples {

/// A rectangle of a drawing, y downwards.
struct Box {
  double left = 0;
  double top = 0;
  double right = 0;
  double bottom = 0;
};

[[nodiscard]] bool overlaps(const Box& a, const Box& b);

/// A text of given size that belongs to the marker at (x, y).
struct LabelRequest {
  double x = 0;
  double y = 0;
  double width = 0;
  double height = 0;
};

struct PlacedLabel {
  Box box;
  bool is_placed = false;
  bool has_leader = false;  ///< far enough from its marker to need a line to it
  double leader_x = 0;      ///< the line's end at the label
  double leader_y = 0;
};

/// Where labels may go and what they must keep clear of.
struct LabelArea {
  Box bounds;
  double marker_radius = 5;
  /// A label that finds no place free of the others' labels and markers is left out.
  bool may_leave_out = false;
  /// Markers without a label of their own, as their centres.
  std::vector<LabelRequest> other_markers;
};

/// Places each label near its marker, away from the other labels, markers and lines, by local
/// search over positions around the marker. The result depends on the input alone.
[[nodiscard]] std::vector<PlacedLabel> place_labels(const std::vector<LabelRequest>& requests,
                                                    const LabelArea& area);

}  // namespace terse::examples
