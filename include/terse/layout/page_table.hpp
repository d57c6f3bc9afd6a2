/// Block tables of engines: which pages hold the tokens of a sequence.
#pragma once

#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// A view of an engine's table in either dialect. The tokens of a row lie in its pages one after
/// another.
struct PageTable {
  const std::int32_t* pages = nullptr;   ///< dense: `[row, max_pages]`; CSR: `indices`
  const std::int32_t* indptr = nullptr;  ///< CSR: `[row + 1]`; null: dense
  std::int64_t row_stride = 0;           ///< dense: elements from one row to the next
  std::int32_t max_pages = 0;            ///< dense: pages that a row has room for
  std::int32_t rows = 0;

  /// Dense `block_table [row, max_pages]` (vLLM). Places behind a row's pages may
  /// hold anything.
  static PageTable dense(const std::int32_t* block_table, int rows, int max_pages) noexcept {
    return {block_table, nullptr, max_pages, max_pages, rows};
  }
  /// CSR (FlashInfer, SGLang): row i has the pages `indices [indptr[i] ... indptr[i + 1])`.
  static PageTable csr(const std::int32_t* indptr, const std::int32_t* indices, int rows) noexcept {
    return {indices, indptr, 0, 0, rows};
  }

  /// Pages of a row; 0 where there is no such row.
  [[nodiscard]] TERSE_HOST_DEVICE std::int64_t num_pages(int row) const noexcept {
    if (row < 0 || row >= rows) return 0;
    if (indptr == nullptr) return max_pages;
    const std::int64_t begin = indptr[row], end = indptr[row + 1];
    return begin < 0 || end < begin ? 0 : end - begin;
  }
  /// Number of the `i`-th page of a row. Precondition: 0 <= i < num_pages(row).
  [[nodiscard]] TERSE_HOST_DEVICE std::int32_t page(int row, std::int64_t i) const noexcept {
    return pages[(indptr == nullptr ? row * row_stride : indptr[row]) + i];
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
