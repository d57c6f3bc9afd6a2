#include "evaluation/policies.hpp"

#include "evaluation/policy_families.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

const std::vector<PolicyRow>& policy_rows() {
  static const std::vector<PolicyRow> rows = [] {
    std::vector<PolicyRow> list;
    add_quantisation_rows(&list);
    add_level_rows(&list);
    add_baseline_rows(&list);
    add_plane_rows(&list);
    add_shaped_rows(&list);
    add_streaming_rows(&list);
    add_heavy_hitter_rows(&list);
    add_low_rank_rows(&list);
    add_composition_rows(&list);
    return list;
  }();
  return rows;
}

const PolicyRow& policy_row(const std::string& name) {
  for (const PolicyRow& row : policy_rows()) {
    if (row.name == name) return row;
  }
  throw InputError("no policy is called '" + name + "'");
}

}  // namespace terse::examples
