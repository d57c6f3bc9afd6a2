// expect: terse::Compose: Reindex::cache_index with an evictor whose survivors scatter
// expect: would need every key rotated again; use StreamingLLM, or keep Reindex::original.
#include "terse/policy/compose.hpp"

struct Own {
  struct Params {
    static terse::Status validate() { return {}; }
  };
#ifdef TERSE_EXPECT_FAIL
  static constexpr bool scatters = true;
#else
  static constexpr bool scatters = false;
#endif
  static constexpr terse::Reindex reindex = terse::Reindex::cache_index;
  static int prefix_tokens(const Params&) { return 4; }
  static void select(terse::TokenList<terse::NoTokenState>&, const Params&,
                     const terse::SelectContext&) {}
};

template struct terse::Compose<Own>;
