// Evictors: the library's pass, and of broken ones the report says what is wrong.
#include "terse/testing/check_evictor.hpp"

#include <string>

#include "terse/evict/attention_gate.hpp"
#include "terse/evict/h2o.hpp"
#include "terse/evict/streaming_llm.hpp"

#include "tests/support/catch.hpp"

using namespace terse;
using terse::testing::check_evictor;
using terse::testing::Report;

namespace {

bool says(const Report& report, const char* text) {
  INFO(report.failure);
  return report.failure.find(text) != std::string::npos;
}

struct Budget {
  int tokens = 50;
  [[nodiscard]] Status validate() const {
    if (tokens > 0) return {};
    return error(StatusCode::invalid_argument, "Budget: tokens must be positive", tokens);
  }
};

struct AcceptsAnything {
  int tokens = 50;
  [[nodiscard]] static Status validate() { return {}; }
};

/// Keeps every second token but says that survivors are contiguous.
struct Scatters {
  using Params = Budget;
  static constexpr bool scatters = false;
  static void select(TokenList<NoTokenState>& list, const Params& params, const SelectContext&) {
    for (int i = 0; i < list.size() - params.tokens; i += 2) list.kill(i);
  }
};

struct Forgetful {
  using Params = Budget;
  static inline unsigned calls = 0;
  static constexpr bool scatters = true;
  static void select(TokenList<NoTokenState>& list, const Params& params, const SelectContext&) {
    const auto victim = static_cast<int>(++calls % 7u);
    if (list.size() > params.tokens) list.kill(victim);
  }
};

struct UnaskedObserver {
  using Params = Budget;
  struct TokenState {
    float score = 0;
  };
  static constexpr bool scatters = true;
  static void observe(TokenState& state, float sum) { state.score += sum; }
  static void select(TokenList<TokenState>&, const Params&, const SelectContext&) {}
};

struct WritesBehindTheScratch {
  using Params = Budget;
  static constexpr bool scatters = true;
  static void select(TokenList<NoTokenState>& list, const Params&, const SelectContext&) {
    list.scratch().data()[list.size()] = 0;
  }
};

struct LooseParams {
  using Params = AcceptsAnything;
  static constexpr bool scatters = false;
  static void select(TokenList<NoTokenState>&, const Params&, const SelectContext&) {}
};

}  // namespace

TEST_CASE("all evictors of the library conform") {
  const StreamingLLM::Params bad_windows[] = {{-1, 5}, {4, 0}};
  CHECK(check_evictor<StreamingLLM>({4, 60}, bad_windows).failure == "");
  CHECK(check_evictor<StreamingLLM>({0, 1}).failure == "");
  CHECK(check_evictor<SinkWindow>({4, 60}).failure == "");
  CHECK(check_evictor<NoEviction>({}).failure == "");
  const H2O::Params bad_budgets[] = {{.heavy_tokens = -1}, {.recent_tokens = 0}};
  CHECK(check_evictor<H2O>({.heavy_tokens = 30, .recent_tokens = 30}, bad_budgets).failure == "");
  CHECK(check_evictor<H2O>({.heavy_tokens = 20,
                            .recent_tokens = 1,
                            .sink_tokens = 4,
                            .normalise = H2O::Normalise::per_query})
            .failure == "");
  const AttentionGate::Params bad_gates[] = {{.threshold = 0.0f}, {.protected_tokens = 0}};
  const Report gate = check_evictor<AttentionGate>({.threshold = 0.5f}, bad_gates);
  CHECK(gate.failure == "");
  CHECK(gate.checks > 1000);
}

TEST_CASE("broken evictors are found, and what is wrong is said") {
  CHECK(says(check_evictor<Scatters>({}), "not a prefix and a window"));
  CHECK(says(check_evictor<Forgetful>({}), "not deterministic"));
  CHECK(says(check_evictor<UnaskedObserver>({}), "observe is never called"));
  CHECK(says(check_evictor<WritesBehindTheScratch>({}), "writes outside"));
  CHECK(says(check_evictor<H2O>({.recent_tokens = 0}), "validate refuses the parameters"));
  const AcceptsAnything bad[] = {{-1}};
  CHECK(says(check_evictor<LooseParams>({}, bad), "validate accepts parameters"));
  // With a budget above the length nothing is dropped, so nothing is wrong.
  const Budget none[] = {{0}};
  CHECK(check_evictor<Scatters>({.tokens = 1000}, none).ok());
}
