// What a layout tells a cache.
#include "terse/layout/layout.hpp"

#include "tests/support/catch.hpp"

namespace {

struct Complete {
  static constexpr bool paged = true;
  static constexpr terse::HeadPaging head_paging = terse::HeadPaging::shared;
};
struct NoPaging {
  static constexpr terse::HeadPaging head_paging = terse::HeadPaging::shared;
};

}  // namespace

TEST_CASE("a layout answers two questions") {
  static_assert(terse::Layout<Complete>);
  static_assert(!terse::Layout<NoPaging> && !terse::Layout<int>);
  static_assert(NoPaging::head_paging == Complete::head_paging);
}
