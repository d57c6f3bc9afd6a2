/// Reference-counted pages of one size. All state lies in the caller's buffer.
#pragma once

#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

struct PoolRecord {
  std::int64_t free_pages = 0;
};

class PagePool {
 public:
  PagePool() = default;
  PagePool(PoolRecord* record, std::int32_t* free_list, std::int32_t* references) noexcept
      : record_(record), free_list_(free_list), references_(references) {}

  /// All `num_pages` pages free; lower ids are handed out first.
  void reset(std::int64_t num_pages) noexcept {
    record_->free_pages = num_pages;
    for (std::int64_t i = 0; i < num_pages; ++i) {
      free_list_[i] = static_cast<std::int32_t>(num_pages - 1 - i);
      references_[i] = 0;
    }
  }

  [[nodiscard]] std::int64_t free_pages() const noexcept { return record_->free_pages; }
  /// Precondition: free_pages() > 0.
  [[nodiscard]] std::int32_t take() noexcept {
    const std::int32_t page = free_list_[--record_->free_pages];
    references_[page] = 1;
    return page;
  }
  void share(std::int32_t page) noexcept { ++references_[page]; }
  [[nodiscard]] std::int32_t references(std::int32_t page) const noexcept {
    return references_[page];
  }
  /// Returns whether this was the last reference.
  bool drop(std::int32_t page) noexcept {
    if (--references_[page] > 0) return false;
    free_list_[record_->free_pages++] = page;
    return true;
  }

 private:
  PoolRecord* record_ = nullptr;
  std::int32_t* free_list_ = nullptr;
  std::int32_t* references_ = nullptr;
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
