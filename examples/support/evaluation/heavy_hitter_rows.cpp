#include "evaluation/policy_families.hpp"
#include "evaluation/row_builder.hpp"

namespace terse::examples {

void add_heavy_hitter_rows(std::vector<PolicyRow>* rows) {
  for (const double share : {0.5, 0.25, 0.125}) {
    rows->push_back({.name = "h2o-" + percent(share),
                     .description = "H2O: heavy hitters by the sum of attention, and the newest",
                     .family = Family::eviction,
                     .in_default = share == 0.5,
                     .make_session = heavy_hitter_session<H2O>(share, H2O::Normalise::sum)});
  }
  for (const double share : {0.5, 0.25, 0.125}) {
    rows->push_back({.name = "h2o-average-" + percent(share),
                     .description = "H2O by the average over the queries that saw a token",
                     .family = Family::eviction,
                     .make_session = heavy_hitter_session<H2O>(share, H2O::Normalise::per_query)});
  }
}

}  // namespace terse::examples
