/// An engine's own paged cache of plain 16-bit (or fp32) keys and values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <numeric>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/core/status.hpp"
#include "terse/layout/page_table.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Sizes of a dense tensor of pages.
struct PageShape {
  std::int64_t num_pages = 0;
  int page_tokens = 0;
  int heads = 0;     ///< KV heads
  int channels = 0;  ///< of a head
  /// 2 where keys and values share a tensor, `[page, 2, ...]`: values then begin half a page
  /// (page_stride / 2 elements) behind keys.
  int tensors_per_page = 1;
};

/// Where the tokens of table rows lie in tensors of pages, the same for keys and values and, in
/// most engines, for all layers. Channel stride 1, other strides in elements. "Place" = number of a
/// token in its table row, counted from 0.
struct PlainPages {
  Scalar scalar = Scalar::f16;
  int page_tokens = 0;
  std::int64_t num_pages = 0;  ///< of the tensors: page numbers of the table are below it
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  PageTable table{};

  /// `[page, token, head, channel]`, or `[page, 2, token, head, channel]`.
  static PlainPages nhd(Scalar scalar, const PageShape& shape, const PageTable& table) noexcept {
    const std::int64_t token = std::int64_t{shape.heads} * shape.channels;
    return {scalar,
            shape.page_tokens,
            shape.num_pages,
            token * shape.page_tokens * shape.tensors_per_page,
            token,
            shape.channels,
            table};
  }
  /// `[page, head, token, channel]`, or `[page, 2, head, token, channel]`.
  static PlainPages hnd(Scalar scalar, const PageShape& shape, const PageTable& table) noexcept {
    PlainPages pages = nhd(scalar, shape, table);
    pages.token_stride = shape.channels;
    pages.head_stride = std::int64_t{shape.page_tokens} * shape.channels;
    return pages;
  }

  /// Places of a table row.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t places(int row) const noexcept {
    return table.num_pages(row) * page_tokens;
  }
  /// Whether the tensors have a page of this number.
  [[nodiscard]] TERSE_HOST_DEVICE bool has_page(std::int32_t page) const noexcept {
    return page >= 0 && page < num_pages;
  }
  /// Elements from the beginning of a tensor to head 0 of (row, place); head h lies h * head_stride
  /// behind it. -1 where the table has no such place or the tensors no such page.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t offset(int row, std::int64_t place) const noexcept {
    if (place < 0 || place >= places(row)) return -1;
    const std::int32_t page = table.page(row, place / page_tokens);
    if (!has_page(page)) return -1;
    return page * page_stride + place % page_tokens * token_stride;
  }
  /// The largest number of elements of which all offsets are multiples. Precondition: validate.
  [[nodiscard]] std::int64_t offset_unit() const noexcept {
    const std::int64_t unit =
        std::gcd(num_pages > 1 ? page_stride : 0, page_tokens > 1 ? token_stride : 0);
    return unit > 0 ? unit : 1;
  }
  /// Offset of the last token of the last page. Precondition: validate.
  [[nodiscard]] std::int64_t last_offset() const noexcept {
    return (num_pages - 1) * page_stride + (page_tokens - 1) * token_stride;
  }

  /// Whether pages of `heads` heads of `channels` channels can have these strides: no number lies
  /// where another does.
  [[nodiscard]] Status validate(int heads, int channels) const noexcept {
    constexpr std::int64_t most_elements = std::int64_t{1} << 48;
    if (table.pages == nullptr) {
      return error(StatusCode::null_pointer, "terse::PlainPages: the table is null");
    }
    if (table.rows < 1) {
      return error(StatusCode::invalid_argument, "terse::PlainPages: the table has no row");
    }
    if (page_tokens < 1 || num_pages < 1) {
      return error(StatusCode::invalid_argument,
                   "terse::PlainPages: page_tokens and num_pages must be positive");
    }
    struct Dimension {
      std::int64_t stride, extent;
    };
    Dimension dimensions[] = {
        {page_stride, num_pages}, {token_stride, page_tokens}, {head_stride, heads}};
    std::sort(std::begin(dimensions), std::end(dimensions),
              [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
    std::int64_t inside = channels;  // elements that all smaller strides span
    for (const Dimension& dimension : dimensions) {
      if (dimension.extent <= 1) continue;
      if (dimension.stride < inside) {
        return error(StatusCode::invalid_argument,
                     "terse::PlainPages: a stride is smaller than what lies inside it, so that "
                     "vectors overlap; detail: the stride",
                     dimension.stride);
      }
      if (dimension.extent - 1 > (most_elements - inside) / dimension.stride) {
        return error(StatusCode::invalid_argument,
                     "terse::PlainPages: a tensor would have more than 2^48 elements; detail: the "
                     "stride",
                     dimension.stride);
      }
      inside += (dimension.extent - 1) * dimension.stride;
    }
    return {};
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
