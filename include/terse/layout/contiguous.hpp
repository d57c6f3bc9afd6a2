/// One region per (slot, sequence), block after block: no table, no sharing. Blocks whose tokens
/// are all dead keep their place until compact().
#pragma once

#include "terse/config.hpp"
#include "terse/layout/layout.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct ContiguousLayout {
  static constexpr bool paged = false;
  static constexpr HeadPaging head_paging = HeadPaging::shared;
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
