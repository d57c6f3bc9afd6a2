#include "evaluation/policy_families.hpp"
#include "evaluation/row_builder.hpp"

namespace terse::examples {

void add_streaming_rows(std::vector<PolicyRow>* rows) {
  for (const double share : {0.5, 0.25, 0.125}) {
    rows->push_back({.name = "streaming-" + percent(share),
                     .description = "StreamingLLM: 4 sinks and a window, distances in the cache",
                     .family = Family::eviction,
                     .in_default = share == 0.5,
                     .make_session = streaming_session<StreamingLLM>(share)});
  }
  for (const double share : {0.5, 0.25, 0.125}) {
    rows->push_back({.name = "window-" + percent(share),
                     .description = "StreamingLLM's tokens with distances as in the text",
                     .family = Family::eviction,
                     .make_session = streaming_session<SinkWindow>(share)});
  }
}

}  // namespace terse::examples
