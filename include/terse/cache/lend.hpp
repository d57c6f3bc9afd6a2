/// Pages that an engine's allocator lends and takes back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "terse/cache/cache_state.hpp"
#include "terse/config.hpp"
#include "terse/core/span.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

template <class State>
[[nodiscard]] Status check_borrower(const State& state, int policy_class) noexcept {
  if (policy_class < 0 || policy_class >= State::num_classes) {
    return error(StatusCode::invalid_argument, "terse::KVCache: no such policy class",
                 policy_class);
  }
  Status status{};
  state.with_store(policy_class, [&](const auto& store) {
    if (!State::layout::paged) {
      status = error(StatusCode::unsupported, "terse::KVCache: the layout has no pages to lend");
    } else if (!store.borrows_pages) {
      status = error(StatusCode::unsupported,
                     "terse::KVCache: the policy class owns its pages; set "
                     "PolicyConfig::borrows_pages",
                     policy_class);
    }
  });
  return status;
}

template <class State>
Status lend_pages(State& state, int policy_class, Span<const std::int32_t> pages) noexcept {
  if constexpr (State::layout::paged) {
    Status status = check_borrower(state, policy_class);
    if (!status.ok()) return status;
    state.with_store(policy_class, [&](auto& store) {
      std::size_t lent = 0;
      for (; lent < pages.size() && status.ok(); ++lent) {
        const std::int32_t page = pages[lent];
        if (page < 0 || page >= store.shape.num_pages || store.pool.is_lent(page)) {
          status =
              error(StatusCode::invalid_argument,
                    "terse::KVCache::lend_pages: a page is out of range or lent already", page);
          break;
        }
        store.pool.lend(page);
      }
      while (!status.ok() && lent-- > 0) static_cast<void>(store.pool.give_back());
    });
    return status;
  } else {
    return check_borrower(state, policy_class);
  }
}

template <class State>
[[nodiscard]] Expected<std::int64_t> take_back_pages(State& state, int policy_class,
                                                     Span<std::int32_t> pages) noexcept {
  if (Status s = check_borrower(state, policy_class); !s.ok()) return s;
  std::int64_t count = 0;
  if constexpr (State::layout::paged) {
    state.with_store(policy_class, [&](auto& store) {
      count = std::min(static_cast<std::int64_t>(pages.size()), store.pool.free_pages());
      for (std::int64_t i = 0; i < count; ++i) {
        pages[static_cast<std::size_t>(i)] = store.pool.give_back();
      }
    });
  }
  return count;
}

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
