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

std::vector<const PolicyRow*> policy_rows_of(const std::vector<std::string>& names,
                                             const std::string& calibration_path) {
  std::vector<const PolicyRow*> rows;
  for (const std::string& name : names) {
    rows.push_back(&policy_row(name));
    if (rows.back()->calibrated && calibration_path.empty()) {
      throw InputError("'" + name + "' needs --calibration; the program calibrate writes one");
    }
  }
  return rows;
}

}  // namespace terse::examples
