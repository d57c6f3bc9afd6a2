#include "evaluation/layer_schedule.hpp"

#include <algorithm>
#include <sstream>

#include "evaluation/scheduled_session.hpp"
#include "model/mapped_file.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace {

/// "12 shaped-2, 18 shaped-3": how many layers have which policy, in the order of the table.
std::string describe(const LayerSchedule& schedule) {
  std::string text;
  for (const PolicyRow& row : policy_rows()) {
    const auto layers = std::count(schedule.begin(), schedule.end(), &row);
    if (layers == 0) continue;
    text.append(text.empty() ? "" : ", ").append(std::to_string(layers)).append(" ");
    text.append(row.name);
  }
  return text;
}

}  // namespace

LayerSchedule load_schedule(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  std::istringstream lines(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  LayerSchedule schedule;
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::istringstream words(line);
    std::string layer, name, more;
    if (!(words >> layer) || layer.front() == '#') continue;
    const std::string where = "'" + path + "' is no schedule: line " + std::to_string(number);
    if (!(words >> name) || words >> more) {
      throw InputError(where + " is not a layer's number and a policy");
    }
    if (layer != std::to_string(schedule.size())) {
      throw InputError(where + " should be of layer " + std::to_string(schedule.size()));
    }
    const auto& rows = policy_rows();
    const auto row =
        std::find_if(rows.begin(), rows.end(), [&](const PolicyRow& r) { return r.name == name; });
    if (row == rows.end() || !row->make_check) {
      throw InputError(std::string(where)
                           .append(": no policy that only stores codes is called '")
                           .append(name)
                           .append("'"));
    }
    schedule.push_back(&*row);
  }
  if (schedule.empty()) throw InputError("'" + path + "' is no schedule: it names no layer");
  return schedule;
}

std::string file_of(const LayerSchedule& schedule, const std::string& comment) {
  std::string text = "# " + comment + "\n";
  for (std::size_t layer = 0; layer < schedule.size(); ++layer) {
    text.append(std::to_string(layer)).append(" ").append(schedule[layer]->name).append("\n");
  }
  return text;
}

void check_layers(const LayerSchedule& schedule, const LlamaConfig& model) {
  if (schedule.size() == static_cast<std::size_t>(model.layers)) return;
  throw InputError("a schedule of " + std::to_string(schedule.size()) +
                   " layers is not for this model, which has " + std::to_string(model.layers));
}

PolicyRow scheduled_row(const std::string& name, const LayerSchedule& schedule) {
  const auto any = [&](auto of) { return std::any_of(schedule.begin(), schedule.end(), of); };
  Family family = schedule.front()->family;  // that with the most bits
  for (const PolicyRow* row : schedule) family = std::min(family, row->family);
  return {.name = name,
          .description = "policies by layer: " + describe(schedule),
          .family = family,
          .on_device = !any([](const PolicyRow* row) { return !row->on_device; }),
          .calibrated = any([](const PolicyRow* row) { return row->calibrated; }),
          .make_session = [schedule](const SessionConfig& config) {
            return make_scheduled_session(config, schedule);
          }};
}

}  // namespace terse::examples
