/// Reference-counted pages of one size. All state lies in the caller's buffer.
#pragma once

#include <cstdint>

#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

struct PoolRecord {
  std::int64_t free_pages = 0;
  std::int64_t lent_pages = 0;  ///< pages that the cache may use
};

class PagePool {
 public:
  PagePool() = default;
  PagePool(PoolRecord* record, std::int32_t* free_list, std::int32_t* references) noexcept
      : record_(record), free_list_(free_list), references_(references) {}

  /// All `num_pages` pages free, lower ids handed out first; or none lent yet.
  void reset(std::int64_t num_pages, bool lent) noexcept {
    *record_ = {lent ? num_pages : 0, lent ? num_pages : 0};
    for (std::int64_t i = 0; i < num_pages; ++i) {
      free_list_[i] = static_cast<std::int32_t>(num_pages - 1 - i);
      references_[i] = lent ? 0 : not_lent;
    }
  }

  [[nodiscard]] std::int64_t free_pages() const noexcept { return record_->free_pages; }
  [[nodiscard]] std::int64_t held_pages() const noexcept {
    return record_->lent_pages - record_->free_pages;
  }
  [[nodiscard]] bool is_lent(std::int32_t page) const noexcept {
    return references_[page] != not_lent;
  }
  /// Precondition: !is_lent(page).
  void lend(std::int32_t page) noexcept {
    references_[page] = 0;
    free_list_[record_->free_pages++] = page;
    ++record_->lent_pages;
  }
  /// Gives a free page back to its owner. Precondition: free_pages() > 0.
  [[nodiscard]] std::int32_t give_back() noexcept {
    const std::int32_t page = free_list_[--record_->free_pages];
    references_[page] = not_lent;
    --record_->lent_pages;
    return page;
  }
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

  // Pages set aside are neither free nor anyone's; the caller counts them (retired_pages.hpp).

  /// As drop, but the page becomes the `i`-th that is set aside.
  bool drop_aside(std::int32_t page, std::int64_t i) noexcept {
    if (--references_[page] > 0) return false;
    aside(i) = page;
    return true;
  }
  [[nodiscard]] std::int32_t take_aside(std::int64_t i) noexcept {
    references_[aside(i)] = 1;
    return aside(i);
  }
  /// Frees the `count` pages set aside.
  void free_aside(std::int64_t count) noexcept {
    while (count > 0) free_list_[record_->free_pages++] = aside(--count);
  }

 private:
  /// The end of the free list has room for them: both together are at most the lent pages.
  [[nodiscard]] std::int32_t& aside(std::int64_t i) noexcept {
    return free_list_[record_->lent_pages - 1 - i];
  }

  static constexpr std::int32_t not_lent = -1;

  PoolRecord* record_ = nullptr;
  std::int32_t* free_list_ = nullptr;
  std::int32_t* references_ = nullptr;
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
