/// The rows by family, each list in a translation unit of its own.
#pragma once

#include <vector>

#include "evaluation/policies.hpp"

namespace terse::examples {

void add_quantisation_rows(std::vector<PolicyRow>* rows);
void add_level_rows(std::vector<PolicyRow>* rows);
void add_baseline_rows(std::vector<PolicyRow>* rows);
void add_plane_rows(std::vector<PolicyRow>* rows);
void add_shaped_rows(std::vector<PolicyRow>* rows);
void add_streaming_rows(std::vector<PolicyRow>* rows);
void add_heavy_hitter_rows(std::vector<PolicyRow>* rows);
void add_low_rank_rows(std::vector<PolicyRow>* rows);
void add_composition_rows(std::vector<PolicyRow>* rows);

}  // namespace terse::examples
