#pragma once

#include <string>
#include <vector>

#include "evaluation/policies.hpp"

namespace terse::examples {

/// A policy for each layer of a model, `[layer]`.
using LayerSchedule = std::vector<const PolicyRow*>;

/// Reads a schedule's file: a line for each layer, its number and the name of a row; lines that
/// begin with # and empty ones say nothing. Throws InputError where the file is none, or names a
/// row that does more than store codes.
[[nodiscard]] LayerSchedule load_schedule(const std::string& path);

/// The text of its file, after `comment`, one line.
[[nodiscard]] std::string file_of(const LayerSchedule& schedule, const std::string& comment);

/// Throws InputError unless the schedule is of as many layers as the model.
void check_layers(const LayerSchedule& schedule, const LlamaConfig& model);

/// A row under which each layer's cache has the policy of its own. Its sessions refuse what
/// check_layers does.
[[nodiscard]] PolicyRow scheduled_row(const std::string& name, const LayerSchedule& schedule);

}  // namespace terse::examples
