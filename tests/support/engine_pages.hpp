/// An engine's paged keys and values as tests have them, in every order of strides and both
/// dialects of tables. Places are computed here in a way of their own.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "terse/core/scalar.hpp"
#include "terse/layout/plain_pages.hpp"
#include "terse/policy/record.hpp"

#include "support/random.hpp"

namespace terse::tests {

enum class PageOrder { nhd, hnd, combined_nhd, combined_hnd };
enum class Dialect { dense, csr };

/// Elements that belong to nothing.
struct PageGaps {
  int token = 0;  ///< behind each token, with HND behind each vector
  int page = 0;   ///< behind each page, in a combined tensor behind each half
};

/// Forms of pages in which all orders, dialects and element types occur.
struct PageForm {
  PageOrder order;
  Scalar scalar;
  int page_tokens;
  Dialect dialect;
  PageGaps gaps{};
};
inline constexpr PageForm page_forms[] = {
    {PageOrder::nhd, Scalar::f16, 16, Dialect::dense},
    {PageOrder::hnd, Scalar::bf16, 64, Dialect::csr},
    {PageOrder::combined_nhd, Scalar::f32, 1, Dialect::csr},
    {PageOrder::combined_hnd, Scalar::bf16, 16, Dialect::dense},
    // Their offsets are multiples of 8, 4, 8 and 1 elements: less than a vector, and not always
    // 16 bytes.
    {PageOrder::nhd, Scalar::f16, 48, Dialect::csr, {.page = 8}},
    {PageOrder::hnd, Scalar::bf16, 3, Dialect::dense, {.page = 4}},
    {PageOrder::combined_nhd, Scalar::f16, 3, Dialect::csr, {.token = 8, .page = 16}},
    {PageOrder::combined_hnd, Scalar::f32, 48, Dialect::dense, {.token = 3, .page = 5}},
};

struct EnginePages {
  PageOrder order;
  Scalar scalar;
  int page_tokens, heads, channels;
  PageGaps gaps;
  std::vector<std::vector<std::int32_t>> numbers;  // [row][page of the row]
  int num_pages = 0;
  std::vector<std::int32_t> block_table, indptr, indices;
  int table_stride = 0;
  std::vector<std::byte> keys, values;  // combined: all lies in keys

  /// Room for `places[row]` tokens in each row; page numbers are shuffled, every byte is 0xa5.
  EnginePages(PageOrder of_order, Scalar of_scalar, int of_page_tokens, int of_heads,
              int of_channels, const std::vector<int>& places, PageGaps of_gaps = {})
      : order(of_order),
        scalar(of_scalar),
        page_tokens(of_page_tokens),
        heads(of_heads),
        channels(of_channels),
        gaps(of_gaps) {
    int max_pages = 0;
    for (const int n : places) {
      const int pages = (n + page_tokens - 1) / page_tokens;
      numbers.emplace_back();
      for (int i = 0; i < pages; ++i) numbers.back().push_back(num_pages++);
      max_pages = pages > max_pages ? pages : max_pages;
    }
    num_pages += 2;  // some that no row names
    std::vector<std::int32_t> order_of(static_cast<std::size_t>(num_pages));
    for (std::size_t i = 0; i < order_of.size(); ++i) order_of[i] = static_cast<std::int32_t>(i);
    Random random(3);
    for (std::size_t i = order_of.size(); i > 1; --i) {
      std::swap(order_of[i - 1], order_of[static_cast<std::size_t>(random.below(int(i)))]);
    }
    for (auto& row : numbers) {
      for (auto& page : row) page = order_of[static_cast<std::size_t>(page)];
    }
    table_stride = max_pages + 3;
    write_tables();
    const std::size_t bytes = static_cast<std::size_t>(num_pages) *
                              static_cast<std::size_t>(page_elements()) *
                              static_cast<std::size_t>(scalar_bytes(scalar));
    keys.assign(is_combined() ? 2 * bytes : bytes, std::byte{0xa5});
    values.assign(is_combined() ? 0 : bytes, std::byte{0xa5});
  }

  EnginePages(const PageForm& form, int of_heads, int of_channels, const std::vector<int>& places)
      : EnginePages(form.order, form.scalar, form.page_tokens, of_heads, of_channels, places,
                    form.gaps) {}

  [[nodiscard]] bool is_by_token() const {
    return order == PageOrder::nhd || order == PageOrder::combined_nhd;
  }
  /// Keys or values of a page, and the gaps behind them.
  [[nodiscard]] int page_elements() const {
    const int gaps_of_page = (is_by_token() ? 1 : heads) * page_tokens * gaps.token + gaps.page;
    return page_tokens * heads * channels + gaps_of_page;
  }
  [[nodiscard]] bool is_combined() const {
    return order == PageOrder::combined_nhd || order == PageOrder::combined_hnd;
  }
  /// Fills the tables from `numbers`.
  void write_tables() {
    block_table.assign(numbers.size() * static_cast<std::size_t>(table_stride), -7);
    indptr = {11};  // indices need not begin at 0
    indices.assign(11, -9);
    for (std::size_t row = 0; row < numbers.size(); ++row) {
      for (std::size_t i = 0; i < numbers[row].size(); ++i) {
        block_table[row * static_cast<std::size_t>(table_stride) + i] = numbers[row][i];
        indices.push_back(numbers[row][i]);
      }
      indptr.push_back(static_cast<std::int32_t>(indices.size()));
    }
  }

  /// The table, whose arrays may be copies elsewhere.
  [[nodiscard]] PageTable table(Dialect dialect, const std::int32_t* of_block_table,
                                const std::int32_t* of_indptr,
                                const std::int32_t* of_indices) const {
    const int rows = static_cast<int>(numbers.size());
    if (dialect == Dialect::csr) return PageTable::csr(of_indptr, of_indices, rows);
    PageTable dense = PageTable::dense(of_block_table, rows, table_stride - 3);
    dense.row_stride = table_stride;
    return dense;
  }
  [[nodiscard]] PlainPages view(const PageTable& of_table) const {
    const PageShape shape{.num_pages = num_pages,
                          .page_tokens = page_tokens,
                          .heads = heads,
                          .channels = channels,
                          .tensors_per_page = is_combined() ? 2 : 1};
    PlainPages pages = is_by_token() ? PlainPages::nhd(scalar, shape, of_table)
                                     : PlainPages::hnd(scalar, shape, of_table);
    pages.token_stride += gaps.token;
    if (!is_by_token()) pages.head_stride += page_tokens * gaps.token;
    pages.page_stride = shape.tensors_per_page * page_elements();
    return pages;
  }
  [[nodiscard]] PlainPages view(Dialect dialect) const {
    return view(table(dialect, block_table.data(), indptr.data(), indices.data()));
  }
  [[nodiscard]] std::byte* key_tensor() { return keys.data(); }
  [[nodiscard]] std::byte* value_tensor() {
    return is_combined() ? keys.data() + value_shift() : values.data();
  }
  /// Bytes from the first key to the first value of a combined tensor.
  [[nodiscard]] std::size_t value_shift() const {
    return static_cast<std::size_t>(page_elements() * scalar_bytes(scalar));
  }

  /// Where a number lies.
  [[nodiscard]] std::byte* at(Side side, int row, int place, int head, int channel) {
    const std::int64_t page =
        numbers[static_cast<std::size_t>(row)][static_cast<std::size_t>(place / page_tokens)];
    const int token = place % page_tokens;
    const std::int64_t half = is_combined() ? page * 2 + (side == Side::key ? 0 : 1) : page;
    const int in_half = is_by_token() ? token * (heads * channels + gaps.token) + head * channels
                                      : (head * page_tokens + token) * (channels + gaps.token);
    const std::int64_t i = half * page_elements() + in_half + channel;
    std::vector<std::byte>& tensor = is_combined() || side == Side::key ? keys : values;
    return tensor.data() + i * scalar_bytes(scalar);
  }
  void put(Side side, int row, int place, int head, int channel, float x) {
    std::byte* to = at(side, row, place, head, channel);
    if (scalar == Scalar::f32) {
      std::memcpy(to, &x, 4);
    } else {
      const std::uint16_t bits =
          scalar == Scalar::f16 ? to_f16_saturating(x).bits : to_bf16(x).bits;
      std::memcpy(to, &bits, 2);
    }
  }
  [[nodiscard]] float get(Side side, int row, int place, int head, int channel) {
    const std::byte* from = at(side, row, place, head, channel);
    std::uint16_t bits = 0;
    float x = 0;
    if (scalar == Scalar::f32) {
      std::memcpy(&x, from, 4);
      return x;
    }
    std::memcpy(&bits, from, 2);
    return scalar == Scalar::f16 ? to_float(F16{bits}) : to_float(BF16{bits});
  }
  /// Random numbers in all places of a row.
  void fill(Random& random, int row, int places) {
    for (const Side side : {Side::key, Side::value}) {
      for (int i = 0; i < places; ++i) {
        for (int h = 0; h < heads; ++h) {
          for (int c = 0; c < channels; ++c) put(side, row, i, h, c, random.normal());
        }
      }
    }
  }
  /// `[token, head, channel]` of places `first` and later of a row, appended to `out`.
  void gather(Side side, int row, int first, int tokens, std::vector<float>* out) {
    for (int i = first; i < first + tokens; ++i) {
      for (int h = 0; h < heads; ++h) {
        for (int c = 0; c < channels; ++c) out->push_back(get(side, row, i, h, c));
      }
    }
  }
};

}  // namespace terse::tests
