/// Import of tokens from an engine's plain pages: append reads them where they lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/append.hpp"
#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"
#include "terse/core/status.hpp"
#include "terse/layout/plain_pages.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Consecutive tokens of one table row: those that one part of a step appends.
struct PageRange {
  std::int32_t table_row = 0;
  std::int32_t tokens = 0;
  std::int64_t first_place = 0;
};

namespace detail {

/// The row of AppendInputs::source_rows of one token of a range, or -1. `offset_unit`: that of
/// `pages`.
[[nodiscard]] TERSE_HOST_DEVICE inline std::int64_t source_row_of(const PlainPages& pages,
                                                                  std::int64_t offset_unit,
                                                                  const PageRange& range,
                                                                  std::int32_t token) noexcept {
  const std::int64_t offset = pages.offset(range.table_row, range.first_place + token);
  return offset < 0 ? -1 : offset / offset_unit;
}

/// Whether pages can hold the vectors that a cache of this shape takes.
[[nodiscard]] inline Status check_vectors(const PlainPages& pages,
                                          const ClassShape& shape) noexcept {
  const UnitShape& unit = shape.unit;
  if (Status s = pages.validate(unit.units * unit.key_streams, shape.key_width); !s.ok()) return s;
  return pages.validate(unit.units * unit.value_streams, shape.value_width);
}

[[nodiscard]] inline AppendInputs inputs_in_rows(const PlainPages& pages, const void* keys,
                                                 const void* values,
                                                 Span<const std::int64_t> source_rows,
                                                 std::int64_t row_stride) noexcept {
  AppendInputs in;
  in.keys = {keys, pages.scalar, row_stride, pages.head_stride};
  in.values = {values, pages.scalar, row_stride, pages.head_stride};
  in.source_rows = source_rows;
  in.num_source_rows = pages.last_offset() / row_stride + 1;
  return in;
}

}  // namespace detail

/// Fills `source_rows [row]` with the rows of the ranges' tokens, one range after another, and what
/// is left of it with -1. They are the same for all layers whose pages have the same table and
/// strides. A page outside the tensors or a table row that is too short is an error
/// (invalid_argument; detail: the range), as are too few rows (buffer_too_small); nothing is
/// written then.
inline Status find_source_rows(const PlainPages& pages, Span<const PageRange> ranges,
                               Span<std::int64_t> source_rows) noexcept {
  if (Status s = pages.validate(1, 1); !s.ok()) return s;
  const std::int64_t unit = pages.offset_unit();
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    for (std::int32_t t = 0; t < ranges[i].tokens; ++t) {
      if (detail::source_row_of(pages, unit, ranges[i], t) < 0) {
        return error(StatusCode::invalid_argument,
                     "terse::find_source_rows: the table names no page for a token, or one that "
                     "the tensors do not have; detail: the range",
                     static_cast<std::int64_t>(i));
      }
    }
    rows += ranges[i].tokens > 0 ? ranges[i].tokens : 0;
  }
  if (rows > static_cast<std::int64_t>(source_rows.size())) {
    return error(StatusCode::buffer_too_small,
                 "terse::find_source_rows: the ranges have more tokens than there are rows; "
                 "detail: rows needed",
                 rows);
  }
  std::size_t row = 0;
  for (const PageRange& range : ranges) {
    for (std::int32_t t = 0; t < range.tokens; ++t, ++row) {
      source_rows[row] = detail::source_row_of(pages, unit, range, t);
    }
  }
  for (; row < source_rows.size(); ++row) source_rows[row] = -1;
  return {};
}

/// Inputs of append that are read from pages: `keys` and `values` are the tensors of a layer,
/// `shape` is its cache's (`cache.layer(i).shape`), `source_rows [row]` what find_source_rows
/// wrote. Of the device for a cache on the device. Strides that leave no room for the shape's
/// vectors are an error (invalid_argument).
[[nodiscard]] inline Expected<AppendInputs> inputs_from_pages(
    const PlainPages& pages, const ClassShape& shape, const void* keys, const void* values,
    Span<const std::int64_t> source_rows) noexcept {
  if (Status s = detail::check_vectors(pages, shape); !s.ok()) return s;
  return detail::inputs_in_rows(pages, keys, values, source_rows, pages.offset_unit());
}

/// The same by an engine's slot mapping: `slots [row]`, a token's page number * page_tokens + its
/// place in the page. Slots are evenly spaced where pages follow one another without gaps:
/// page_stride must be page_tokens * token_stride (invalid_argument). All rows are appended: append
/// refuses slots that are none, as -1 for padding.
[[nodiscard]] inline Expected<AppendInputs> inputs_from_slots(
    const PlainPages& pages, const ClassShape& shape, const void* keys, const void* values,
    Span<const std::int64_t> slots) noexcept {
  if (Status s = detail::check_vectors(pages, shape); !s.ok()) return s;
  if (pages.token_stride < 1 || pages.page_stride != pages.page_tokens * pages.token_stride) {
    return error(
        StatusCode::invalid_argument,
        "terse::inputs_from_slots: slots are not evenly spaced, because page_stride is not "
        "page_tokens * token_stride; use find_source_rows; detail: page_stride",
        pages.page_stride);
  }
  return detail::inputs_in_rows(pages, keys, values, slots, pages.token_stride);
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
