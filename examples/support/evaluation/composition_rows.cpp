#include "evaluation/policy_families.hpp"
#include "evaluation/row_builder.hpp"

namespace terse::examples {

void add_composition_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](const char* name, const char* description, bool in_default,
                       FactorRequest factors, auto make) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = Family::composition,
                     .in_default = in_default,
                     .factors = factors,
                     .make_session = make});
  };
  constexpr auto average = H2O::Normalise::per_query;
  constexpr FactorRequest two_sided{0.5, 1.0, true};
  add("int8-x-h2o-50", "int8 with H2O (average) at half of the tokens", false, {},
      heavy_hitter_session<Compose<Int8, H2O>>(0.5, average));
  add("int4-x-h2o-50", "rotated int4 with H2O (average) at half of the tokens", true, {},
      heavy_hitter_session<Compose<Int4Rotated, H2O>>(0.5, average));
  add("int4-x-h2o-25", "rotated int4 with H2O (average) at a quarter of the tokens", false, {},
      heavy_hitter_session<Compose<Int4Rotated, H2O>>(0.25, average));
  add("kivi-2-x-streaming-50", "KIVI 2 bits with StreamingLLM at half of the tokens", true, {},
      streaming_session<Compose<Kivi2, StreamingLLM>>(0.5));
  add("latents-x-int4", "latents (keys 50 %) stored as rotated int4", true, two_sided,
      session_of<Compose<PaluJoint, Int4Rotated>>());
  add("latents-x-int4-x-h2o-50",
      "latents (keys 50 %) as rotated int4 with H2O (average) at half of the tokens, evicting "
      "every 64",
      true, two_sided,
      heavy_hitter_session<Compose<PaluJoint, Int4Rotated, H2O>, HeadPaging::shared>(0.5, average,
                                                                                     64));
  const auto add_shaped = [&](const char* name, const char* description, auto make) {
    rows->push_back({.name = name,
                     .description = description,
                     .family = Family::composition,
                     .on_device = false,
                     .calibrated = true,
                     .make_session = make});
  };
  add_shaped("shaped-4-x-h2o-50", "shaped-4 with H2O (average) at half of the tokens",
             heavy_hitter_session<Compose<Shaped4, H2O>>(0.5, average));
  add_shaped("shaped-4-x-window-50", "shaped-4 with four sinks and a window, half of the tokens",
             streaming_session<Compose<Shaped4, SinkWindow>>(0.5));
  add_shaped("shaped-3k-2v-x-h2o-50", "shaped-3k-2v with H2O (average) at half of the tokens",
             heavy_hitter_session<Compose<Shaped3K2V, H2O>>(0.5, average));
  add_shaped("shaped-3k-2v-x-h2o-75", "shaped-3k-2v with H2O (average) at three quarters",
             heavy_hitter_session<Compose<Shaped3K2V, H2O>>(0.75, average));
}

}  // namespace terse::examples
