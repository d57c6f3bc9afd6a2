// The list of rows.

#include "evaluation/policies.hpp"

#include <set>

#include "../model/refusal.hpp"
#include "support/catch.hpp"

using namespace terse::examples;

TEST_CASE("rows have names of their own, and the table has every named method") {
  std::set<std::string> names;
  int in_default = 0;
  for (const PolicyRow& row : policy_rows()) {
    INFO(row.name);
    CHECK(names.insert(row.name).second);
    CHECK(!row.description.empty());
    CHECK(row.make_session != nullptr);
    CHECK(&policy_row(row.name) == &row);
    in_default += row.in_default ? 1 : 0;
  }
  CHECK(in_default >= 12);
  CHECK(policy_rows().front().name == "identity");
  for (const char* name : {"identity",
                           "fp8",
                           "int8",
                           "q8_0",
                           "q4_0",
                           "int4-rotated",
                           "kivi-4",
                           "kivi-3",
                           "kivi-2",
                           "nvfp4",
                           "turboquant-4",
                           "turboquant-3",
                           "turboquant-2",
                           "turboquant-prod-4",
                           "turboquant-prod-3",
                           "turboquant-prod-2",
                           "kvarn-4k-2v",
                           "kvarn-2",
                           "kvquant-3",
                           "kvquant-2",
                           "fp8-keys",
                           "fp8-values",
                           "aligned-kv-exponents",
                           "aligned-kv-0.1",
                           "aligned-fixed16-0.5",
                           "aligned-int8-0.5",
                           "aligned-int4-1",
                           "streaming-50",
                           "streaming-25",
                           "streaming-12",
                           "h2o-50",
                           "h2o-25",
                           "h2o-12",
                           "h2o-average-50",
                           "h2o-average-25",
                           "h2o-average-12",
                           "palu-k75-v75",
                           "palu-k50-v100",
                           "latents-k75-v75",
                           "latents-k50-v100",
                           "shaped-4-sinks",
                           "shaped-4-searched",
                           "shaped-3-sinks",
                           "shaped-2k-1v",
                           "shaped-2-int8-tail",
                           "shaped-2-long-int8-tail",
                           "shaped-trellis-2-long-int8-tail",
                           "shaped-trellis-4",
                           "shaped-trellis-3",
                           "shaped-trellis-3k-2v",
                           "shaped-trellis-2",
                           "shaped-trellis-2k-1v",
                           "int4-x-h2o-50",
                           "shaped-4-x-h2o-50",
                           "kivi-2-x-streaming-50",
                           "latents-x-int4",
                           "latents-x-int4-x-h2o-50"}) {
    INFO(name);
    CHECK(names.count(name) == 1);
  }
  CHECK(terse_test::contains(
      terse_test::refusal_of([] { static_cast<void>(policy_row("none-such")); }), "none-such"));
}
