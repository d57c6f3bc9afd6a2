/// Import of tokens from an engine's plain pages: append reads them where they lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/append.hpp"
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

/// The row of AppendInputs::source_rows of one token of a range, or -1. `row_stride`: that of
/// `pages`.
[[nodiscard]] TERSE_HOST_DEVICE inline std::int64_t source_row_of(const PlainPages& pages,
                                                                  std::int64_t row_stride,
                                                                  const PageRange& range,
                                                                  std::int32_t token) noexcept {
  const std::int64_t offset = pages.offset(range.table_row, range.first_place + token);
  return offset < 0 ? -1 : offset / row_stride;
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
  const std::int64_t row_stride = pages.row_stride();
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    for (std::int32_t t = 0; t < ranges[i].tokens; ++t) {
      if (detail::source_row_of(pages, row_stride, ranges[i], t) < 0) {
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
      source_rows[row] = detail::source_row_of(pages, row_stride, range, t);
    }
  }
  for (; row < source_rows.size(); ++row) source_rows[row] = -1;
  return {};
}

/// Inputs of append that are read from pages: `keys` and `values` are the tensors of a layer,
/// `source_rows` what find_source_rows wrote, or an engine's own slot mapping where page_stride is
/// page_tokens * token_stride. Of the device for a cache on the device.
[[nodiscard]] inline AppendInputs inputs_from_pages(const PlainPages& pages, const void* keys,
                                                    const void* values,
                                                    Span<const std::int64_t> source_rows) noexcept {
  const std::int64_t row_stride = pages.row_stride();
  AppendInputs in;
  in.keys = {keys, pages.scalar, row_stride, pages.head_stride};
  in.values = {values, pages.scalar, row_stride, pages.head_stride};
  in.source_rows = source_rows;
  in.num_source_rows = row_stride > 0 ? pages.num_rows() : 0;
  return in;
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
