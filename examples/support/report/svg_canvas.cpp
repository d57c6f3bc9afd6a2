#include "report/svg_canvas.hpp"

#include <array>
#include <initializer_list>

#include "report/format.hpp"

namespace terse::examples {
namespace {

constexpr double marker_radius = SvgCanvas::marker_radius;

constexpr std::string_view style = R"(<style>
text { font-family: Helvetica, Arial, "Liberation Sans", "DejaVu Sans", sans-serif; font-size: 12px; fill: #1f2328; }
.title { font-size: 18px; font-weight: bold; }
.axis { font-size: 13px; }
.soft { fill: #59636e; }
.background { fill: #ffffff; }
.frame { fill: none; stroke: #818b98; }
.grid { stroke: #d1d9e0; }
.minor { stroke: #eff2f5; }
.leader { stroke: #818b98; stroke-width: 0.8; }
.label { stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; }
.marker { stroke: #ffffff; stroke-width: 1; }
.eight_bit { fill: #0969da; } .four_bit { fill: #1a7f37; } .two_bit { fill: #b35900; }
.eviction { fill: #cf222e; } .low_rank { fill: #8250df; } .composition { fill: #3d444d; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.soft { fill: #9198a1; }
.background { fill: #0d1117; }
.frame { stroke: #656c76; }
.grid { stroke: #30363d; }
.minor { stroke: #1b2129; }
.leader { stroke: #7d8590; }
.label { stroke: #0d1117; }
.marker { stroke: #0d1117; }
.eight_bit { fill: #58a6ff; } .four_bit { fill: #3fb950; } .two_bit { fill: #f0a030; }
.eviction { fill: #ff7b72; } .low_rank { fill: #bc8cff; } .composition { fill: #e6edf3; }
}
</style>
)";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else {
      // XML has no way to write the other control characters.
      out += static_cast<unsigned char>(c) < 0x20U ? ' ' : c;
    }
  }
  return out;
}

std::string number(double value) { return format_fixed(value, 1); }

std::string polygon(double x, double y, std::initializer_list<std::array<double, 2>> corners) {
  std::string out = "<polygon points=\"";
  for (const auto& [dx, dy] : corners) {
    out += number(x + dx * marker_radius) + "," + number(y + dy * marker_radius) + " ";
  }
  out.back() = '"';
  return out;
}

// One shape a family, so that colour is not the only sign.
std::string shape(double x, double y, Family family) {
  switch (family) {
    case Family::four_bit:
      return polygon(x, y, {{-0.9, -0.9}, {0.9, -0.9}, {0.9, 0.9}, {-0.9, 0.9}});
    case Family::two_bit:
      return polygon(x, y, {{0, -1.25}, {1.25, 0}, {0, 1.25}, {-1.25, 0}});
    case Family::eviction:
      return polygon(x, y, {{0, -1.2}, {1.15, 0.9}, {-1.15, 0.9}});
    case Family::low_rank:
      return polygon(x, y, {{0, 1.2}, {1.15, -0.9}, {-1.15, -0.9}});
    case Family::composition:
      return polygon(x, y,
                     {{-0.4, -1.2},
                      {0.4, -1.2},
                      {0.4, -0.4},
                      {1.2, -0.4},
                      {1.2, 0.4},
                      {0.4, 0.4},
                      {0.4, 1.2},
                      {-0.4, 1.2},
                      {-0.4, 0.4},
                      {-1.2, 0.4},
                      {-1.2, -0.4},
                      {-0.4, -0.4}});
    case Family::eight_bit:
      break;
  }
  return "<circle cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"" + number(marker_radius) +
         "\"";
}

}  // namespace

void SvgCanvas::text(double x, double y, std::string_view anchor, std::string_view css_class,
                     std::string_view content, double rotation) {
  body_ += "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"";
  body_.append(anchor).append("\" class=\"").append(css_class).append("\"");
  if (rotation != 0) {
    body_ += " transform=\"rotate(" + number(rotation) + " " + number(x) + " " + number(y) + ")\"";
  }
  body_.append(">").append(escaped(content)).append("</text>\n");
}

void SvgCanvas::line(double x1, double y1, double x2, double y2, std::string_view css_class) {
  body_ += "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) +
           "\" y2=\"" + number(y2) + "\" class=\"";
  body_.append(css_class).append("\"/>\n");
}

void SvgCanvas::frame(const Box& box) {
  body_ += "<rect x=\"" + number(box.left) + "\" y=\"" + number(box.top) + "\" width=\"" +
           number(box.right - box.left) + "\" height=\"" + number(box.bottom - box.top) +
           "\" class=\"frame\"/>\n";
}

void SvgCanvas::marker(double x, double y, Family family, std::string_view tooltip) {
  body_ += "<g>";
  if (!tooltip.empty()) body_ += "<title>" + escaped(tooltip) + "</title>";
  body_ += shape(x, y, family) + " class=\"marker ";
  body_.append(family_key(family)).append("\"/></g>\n");
}

std::string SvgCanvas::document(double width, double height, std::string_view title) const {
  std::string out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
  out += "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(width) + "\" height=\"" +
         number(height) + "\" viewBox=\"0 0 " + number(width) + " " + number(height) +
         "\" role=\"img\">\n";
  out += "<title>" + escaped(title) + "</title>\n";
  out.append(style);
  out += "<rect width=\"100%\" height=\"100%\" class=\"background\"/>\n";
  return out + body_ + "</svg>\n";
}

double SvgCanvas::text_width(std::string_view text, double size) {
  double ems = 0;
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if ((code & 0xC0U) == 0x80U) continue;
    if (std::string_view("iljtf.,:;|()' ").find(c) != std::string_view::npos) {
      ems += 0.39;
    } else if (std::string_view("mwMW%").find(c) != std::string_view::npos) {
      ems += 0.96;
    } else {
      ems += code >= 'A' && code <= 'Z' ? 0.74 : 0.63;
    }
  }
  return ems * size;
}

}  // namespace terse::examples
