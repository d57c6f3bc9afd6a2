#include "report/svg_plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>

#include "report/format.hpp"
#include "report/label_placement.hpp"
#include "report/plot_axis.hpp"
#include "report/svg_canvas.hpp"

namespace terse::examples {
namespace {

constexpr double width = 1000;
constexpr double panel_left = 84;
constexpr double panel_right = 976;
constexpr double main_panel_height = 560;
constexpr double passkey_panel_height = 170;
constexpr double marker_radius = SvgCanvas::marker_radius;
constexpr double label_size = SvgCanvas::text_size;
constexpr double line_height = 18;
// Below it a divergence is rounding, not a policy's error.
constexpr double negligible_kl = 1e-6;

constexpr std::array families = {Family::eight_bit, Family::four_bit, Family::two_bit,
                                 Family::eviction,  Family::low_rank, Family::composition};

struct Point {
  const ResultRow* row;
  double x;
  double y;
  std::string label;
};

PlotAxis bytes_axis(const std::vector<const ResultRow*>& rows) {
  double low = rows.front()->bytes_per_token;
  double high = low;
  for (const ResultRow* row : rows) {
    low = std::min(low, row->bytes_per_token);
    high = std::max(high, row->bytes_per_token);
  }
  if (high / low > 2.5) {
    const double margin = std::pow(high / low, 0.07);
    return {low / margin, high * margin, panel_left, panel_right, true};
  }
  const double margin = std::max(0.1 * (high - low), 0.05 * high);
  return {std::max(0.0, low - margin), high + margin, panel_left, panel_right, false};
}

PlotAxis divergence_axis(const std::vector<const ResultRow*>& rows, const Box& panel) {
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (const ResultRow* row : rows) {
    if (row->mean_kl > negligible_kl) low = std::min(low, row->mean_kl);
    high = std::max(high, row->mean_kl);
  }
  low = std::isfinite(low) ? round_down_125(low / 1.6) : negligible_kl;
  high = std::max(high, 10 * low);
  return {low, high * std::pow(high / low, 0.06), panel.bottom, panel.top, true};
}

// 0.001, 0.0015, 1e-5: no more digits than a tick has.
std::string divergence_tick(double value) {
  const int exponent = static_cast<int>(std::floor(std::log10(value) + 1e-9));
  const bool is_plain = exponent >= -4;
  std::string text =
      is_plain ? format_significant(value, 2) : format_fixed(value / std::pow(10.0, exponent), 1);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return is_plain ? text : text.append("e").append(std::to_string(exponent));
}

void draw_bytes_grid(SvgCanvas& svg, const PlotAxis& axis, const Box& panel) {
  for (const double value : axis.minor_ticks()) {
    svg.line(axis.place(value), panel.top, axis.place(value), panel.bottom, "minor");
  }
  for (const double value : axis.ticks()) {
    svg.line(axis.place(value), panel.top, axis.place(value), panel.bottom, "grid");
  }
}

void draw_bytes_ticks(SvgCanvas& svg, const PlotAxis& axis, const Box& panel) {
  double free_from = -1;
  for (const double value : axis.ticks()) {
    const std::string text = format_grouped(std::llround(value));
    const double half = SvgCanvas::text_width(text) / 2;
    if (axis.place(value) - half < free_from) continue;
    free_from = axis.place(value) + half + 8;
    svg.text(axis.place(value), panel.bottom + 17, "middle", "soft", text);
  }
}

// The same axis as times smaller than the 16-bit cache, along the panel's upper edge.
void draw_ratio_ticks(SvgCanvas& svg, const PlotAxis& axis, const Box& panel,
                      const std::vector<const ResultRow*>& rows) {
  double full_bytes = 0;
  for (const ResultRow* row : rows) {
    if (row->compression_ratio > 0) full_bytes = row->bytes_per_token * row->compression_ratio;
  }
  if (full_bytes <= 0) return;
  svg.text(panel.right, panel.top - 40, "end", "soft", "times smaller than the 16-bit cache:");
  double free_until = panel.right + 20;
  for (const double ratio : {1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0}) {
    const double bytes = full_bytes / ratio;
    if (bytes < axis.low() || bytes > axis.high()) continue;
    const double x = axis.place(bytes);
    const std::string text = format_significant(ratio, ratio == 1.5 ? 2 : ratio < 10 ? 1 : 2) + "x";
    if (x + SvgCanvas::text_width(text) > free_until) continue;
    free_until = x - SvgCanvas::text_width(text) / 2;
    svg.line(x, panel.top - 5, x, panel.top, "frame");
    svg.text(x, panel.top - 9, "middle", "soft", text);
  }
}

void draw_axis_title(SvgCanvas& svg, const Box& panel, std::string_view text) {
  const double x = 22;
  const double y = (panel.top + panel.bottom) / 2;
  svg.text(x, y, "middle", "axis", text, -90);
}

std::string tooltip(const ResultRow& row) {
  std::string text = row.policy + ": " + format_grouped(std::llround(row.bytes_per_token)) +
                     " bytes per token, mean KL " + format_significant(row.mean_kl, 3);
  if (!std::isnan(row.passkey_digits_right)) {
    text += ", " + format_fixed(100 * row.passkey_digits_right, 0) + " % of passkey digits right";
  }
  return text;
}

// Every point gets a marker, and those with a text a label.
void draw_points(SvgCanvas& svg, const std::vector<Point>& points, const Box& panel,
                 bool may_leave_out) {
  std::vector<LabelRequest> requests;
  std::vector<const Point*> labelled;
  LabelArea area{panel, marker_radius, may_leave_out, {}};
  for (const Point& point : points) {
    if (point.label.empty()) {
      area.other_markers.push_back({point.x, point.y, 0, 0});
      continue;
    }
    requests.push_back({point.x, point.y, SvgCanvas::text_width(point.label) + 2, label_size + 1});
    labelled.push_back(&point);
  }
  const double inset = 3;
  area.bounds = {panel.left + inset, panel.top + inset, panel.right - inset, panel.bottom - inset};
  const std::vector<PlacedLabel> labels = place_labels(requests, area);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (!labels[i].has_leader) continue;
    svg.line(labelled[i]->x, labelled[i]->y, labels[i].leader_x, labels[i].leader_y, "leader");
  }
  for (const Point& point : points) {
    svg.marker(point.x, point.y, point.row->family, tooltip(*point.row));
  }
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const Box& box = labels[i].box;
    if (!labels[i].is_placed) continue;
    // The side that faces the marker is exact, whatever the font's true width.
    const bool is_right = (box.left + box.right) / 2 > labelled[i]->x + 8;
    const bool is_left = (box.left + box.right) / 2 < labelled[i]->x - 8;
    const double x = is_right ? box.left + 1 : is_left ? box.right - 1 : (box.left + box.right) / 2;
    svg.text(x, box.bottom - 3,
             is_right  ? "start"
             : is_left ? "end"
                       : "middle",
             "label", labelled[i]->label);
  }
}

void draw_divergence_panel(SvgCanvas& svg, const std::vector<const ResultRow*>& rows,
                           const PlotAxis& bytes, const Box& panel) {
  const PlotAxis axis = divergence_axis(rows, panel);
  bool has_clamped = false;
  std::vector<Point> points;
  for (const ResultRow* row : rows) {
    Point point{row, bytes.place(row->bytes_per_token), 0, row->policy};
    if (row->mean_kl < axis.low()) {
      has_clamped = true;
      point.y = panel.bottom;
      point.label += " (" + format_significant(row->mean_kl, 2) + ")";
    } else {
      point.y = axis.place(row->mean_kl);
    }
    points.push_back(point);
  }
  draw_bytes_grid(svg, bytes, panel);
  for (const double value : axis.minor_ticks()) {
    svg.line(panel.left, axis.place(value), panel.right, axis.place(value), "minor");
  }
  for (const double value : axis.ticks()) {
    const double y = axis.place(value);
    const bool is_floor = y > panel.bottom - label_size;
    svg.line(panel.left, y, panel.right, y, "grid");
    if (!(is_floor && has_clamped)) {
      svg.text(panel.left - 8, y + 4, "end", "soft", divergence_tick(value));
    }
  }
  if (has_clamped) {
    svg.text(panel.left - 8, panel.bottom + 4, "end", "soft",
             "\xE2\x89\xA4 " + divergence_tick(axis.low()));
  }
  svg.frame(panel);
  draw_axis_title(svg, panel, "mean KL divergence to the 16-bit cache (nats)");
  draw_points(svg, points, panel, false);
}

void draw_passkey_panel(SvgCanvas& svg, const std::vector<const ResultRow*>& rows,
                        const PlotAxis& bytes, const Box& panel) {
  const double inset = 14;
  const PlotAxis axis(0, 1, panel.bottom - inset, panel.top + inset, false);
  draw_bytes_grid(svg, bytes, panel);
  for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    svg.line(panel.left, axis.place(share), panel.right, axis.place(share), "grid");
    svg.text(panel.left - 8, axis.place(share) + 4, "end", "soft",
             format_fixed(100 * share, 0) + " %");
  }
  svg.frame(panel);
  draw_axis_title(svg, panel, "passkey digits right");
  // A crowd stands at the top; names are needed where a policy fails.
  constexpr double least_unnamed = 0.95;
  std::vector<Point> points;
  for (const ResultRow* row : rows) {
    if (std::isnan(row->passkey_digits_right)) continue;
    const double share = std::clamp(row->passkey_digits_right, 0.0, 1.0);
    points.push_back({row, bytes.place(row->bytes_per_token), axis.place(share),
                      share < least_unnamed ? row->policy : std::string()});
  }
  draw_points(svg, points, panel, true);
}

void draw_legend(SvgCanvas& svg, double y, const std::vector<const ResultRow*>& rows) {
  double x = panel_left + marker_radius;
  for (const Family family : families) {
    const bool is_used = std::any_of(
        rows.begin(), rows.end(), [family](const ResultRow* row) { return row->family == family; });
    if (!is_used) continue;
    svg.marker(x, y - 4, family, "");
    svg.text(x + 11, y, "start", "legend", family_name(family));
    x += 11 + SvgCanvas::text_width(family_name(family)) + 28;
  }
}

std::string subtitle(const RunInfo& run, const std::vector<const ResultRow*>& rows) {
  std::string text = run.model_name.empty() ? run.model_path : run.model_name;
  for (std::size_t i = 0; i < run.texts.size(); ++i) {
    text += i == 0 ? " on " : ", ";
    text += run.texts[i].name;
  }
  long long positions = 0;
  for (const ResultRow* row : rows) positions = std::max(positions, row->scored_positions);
  if (positions > 0) text += "; " + format_grouped(positions) + " positions scored";
  return text;
}

}  // namespace

std::string quality_plot_svg(const RunInfo& run, const std::vector<ResultRow>& rows) {
  std::vector<const ResultRow*> shown;
  bool has_passkey = false;
  for (const ResultRow& row : rows) {
    if (!(row.bytes_per_token > 0) || !std::isfinite(row.bytes_per_token) ||
        !std::isfinite(row.mean_kl)) {
      continue;
    }
    shown.push_back(&row);
    has_passkey = has_passkey || !std::isnan(row.passkey_digits_right);
  }

  SvgCanvas svg;
  double y = 34;
  svg.text(panel_left, y, "start", "title", "Quality against bytes: left and low is better");
  y += 5;
  constexpr std::size_t subtitle_columns = 130;
  for (const std::string& line : wrap_text(subtitle(run, shown), subtitle_columns)) {
    y += line_height;
    svg.text(panel_left, y, "start", "soft", line);
  }
  y += line_height + 8;
  if (shown.empty()) {
    svg.text(panel_left, y, "start", "axis", "No policy was measured.");
  } else {
    draw_legend(svg, y, shown);
    y += 22;
    y += line_height;
    const PlotAxis bytes = bytes_axis(shown);
    Box panel{panel_left, y, panel_right, y + main_panel_height};
    draw_divergence_panel(svg, shown, bytes, panel);
    draw_ratio_ticks(svg, bytes, panel, shown);
    if (has_passkey) {
      panel.top = panel.bottom + 20;
      panel.bottom = panel.top + passkey_panel_height;
      draw_passkey_panel(svg, shown, bytes, panel);
    }
    draw_bytes_ticks(svg, bytes, panel);
    y = panel.bottom + 40;
    svg.text(
        (panel_left + panel_right) / 2, y, "middle", "axis",
        bytes.is_log() ? "bytes per token, all layers (log scale)" : "bytes per token, all layers");
  }
  return svg.document(width, y + 20, "Quality against bytes per token: " + subtitle(run, shown));
}

}  // namespace terse::examples
