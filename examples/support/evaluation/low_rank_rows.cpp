#include "evaluation/policy_families.hpp"
#include "evaluation/row_builder.hpp"

namespace terse::examples {

void add_low_rank_rows(std::vector<PolicyRow>* rows) {
  const auto add = [&](std::string name, std::string description, bool in_default, double key_share,
                       double value_share, bool both_sides) {
    rows->push_back({.name = std::move(name),
                     .description = std::move(description),
                     .family = Family::low_rank,
                     .in_default = in_default,
                     .factors = {key_share, value_share, both_sides},
                     .make_session = session_of<PaluJoint>()});
  };
  add("palu-k75-v75", "Palu latents of all heads, 75 % of the ranks", false, 0.75, 0.75, false);
  add("palu-k50-v100", "Palu latents of all heads, keys 50 %", false, 0.5, 1.0, false);
  add("latents-k75-v75", "latents whitened on both sides, 75 % of the ranks", true, 0.75, 0.75,
      true);
  add("latents-k50-v100", "latents whitened on both sides, keys 50 %", false, 0.5, 1.0, true);
}

}  // namespace terse::examples
