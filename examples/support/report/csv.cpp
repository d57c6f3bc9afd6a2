#include "report/csv.hpp"

#include <cmath>

#include "report/format.hpp"
#include "report/result_fields.hpp"

namespace terse::examples {

std::string csv_record(const std::vector<std::string>& fields) {
  std::string record;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (i > 0) record += ',';
    const std::string& field = fields[i];
    if (field.find_first_of(",\"\r\n") == std::string::npos) {
      record += field;
      continue;
    }
    record += '"';
    for (const char c : field) {
      if (c == '"') record += '"';
      record += c;
    }
    record += '"';
  }
  return record + "\r\n";
}

std::string results_csv(const std::vector<ResultRow>& rows) {
  std::vector<std::string> header = {"policy", "description", "family"};
  for (const ResultField& field : result_fields) header.emplace_back(field.name);
  header.emplace_back("scored_positions");
  std::string out = csv_record(header);
  for (const ResultRow& row : rows) {
    std::vector<std::string> record = {row.policy, row.description,
                                       std::string(family_key(row.family))};
    for (const ResultField& field : result_fields) {
      const double value = row.*field.value;
      record.push_back(std::isfinite(value) ? format_exact(value) : std::string());
    }
    record.push_back(std::to_string(row.scored_positions));
    out += csv_record(record);
  }
  return out;
}

}  // namespace terse::examples
