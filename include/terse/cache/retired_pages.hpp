/// Pages that rows give up while they are rewritten.
#pragma once

#include <cstdint>

#include "terse/cache/page_pool.hpp"
#include "terse/config.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

/// A row takes the pages that it gave up itself at once. Those of other rows become free by
/// `settle` only: where rows are rewritten side by side, they may still be read until then.
class RetiredPages {
 public:
  explicit RetiredPages(PagePool& pool) noexcept : pool_(pool) {}

  void begin_row() noexcept { others_ = count_; }
  /// Whether `settle` has to come before the next `take`.
  [[nodiscard]] bool must_settle() const noexcept {
    return count_ == others_ && pool_.free_pages() == 0;
  }
  [[nodiscard]] std::int32_t take() noexcept {
    return count_ > others_ ? pool_.take_aside(--count_) : pool_.take();
  }
  void drop(std::int32_t page) noexcept {
    if (pool_.drop_aside(page, count_)) ++count_;
  }
  void settle() noexcept {
    pool_.free_aside(count_);
    count_ = others_ = 0;
  }

 private:
  PagePool& pool_;
  std::int64_t count_ = 0;
  std::int64_t others_ = 0;  // of these, not the row's own
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
