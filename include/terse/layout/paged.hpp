/// Pages from a pool, found through a block table: memory is shared by forks and returned by
/// eviction. With HeadPaging::per_head, eviction per head returns memory per head.
#pragma once

#include "terse/config.hpp"
#include "terse/layout/layout.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

template <HeadPaging P = HeadPaging::shared>
struct PagedLayout {
  static constexpr bool paged = true;
  static constexpr HeadPaging head_paging = P;
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
