#pragma once

#include <string>
#include <string_view>

#include "report/label_placement.hpp"
#include "report/result_row.hpp"

namespace terse::examples {

/// The elements of a drawing in order. Coordinates are the drawing's own units, which a browser
/// shows as pixels. Colours come from a style sheet with a light and a dark half, by CSS class:
/// title, axis, soft, label (texts), frame, grid, minor, leader (lines).
class SvgCanvas {
 public:
  static constexpr double marker_radius = 5.5;
  static constexpr double text_size = 12;

  /// `anchor` is start, middle or end; `rotation` is in degrees about (x, y).
  void text(double x, double y, std::string_view anchor, std::string_view css_class,
            std::string_view content, double rotation = 0);

  void line(double x1, double y1, double x2, double y2, std::string_view css_class);
  void frame(const Box& box);

  /// The family's shape and colour; a browser shows `tooltip` under the pointer.
  void marker(double x, double y, Family family, std::string_view tooltip);

  /// The whole file.
  [[nodiscard]] std::string document(double width, double height, std::string_view title) const;

  /// A generous estimate of a text's width, so that boxes hold it in any of the fonts.
  [[nodiscard]] static double text_width(std::string_view text, double size = text_size);

 private:
  std::string body_;
};

}  // namespace terse::examples
