#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "report/result_row.hpp"

namespace terse::examples {

/// Writes indented JSON (RFC 8259), members in the order of the calls. The caller opens and closes
/// in matching order; `text()` is complete once everything is closed.
class JsonWriter {
 public:
  JsonWriter& begin_object();
  JsonWriter& end_object();
  JsonWriter& begin_array();
  JsonWriter& end_array();
  JsonWriter& key(std::string_view name);
  JsonWriter& value(std::string_view text);
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& value(const std::string& text) { return value(std::string_view(text)); }
  /// NaN and infinities become null: JSON has no word for them.
  JsonWriter& value(double number);
  JsonWriter& value(long long number);
  JsonWriter& value(int number) { return value(static_cast<long long>(number)); }
  JsonWriter& null();

  template <class T>
  JsonWriter& member(std::string_view name, const T& content) {
    key(name);
    return value(content);
  }

  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  void begin_value();
  void new_line();
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);

  std::string text_;
  std::vector<bool> has_members_;  // one entry for each open bracket
  bool is_after_key_ = false;
};

/// `text` in quotes with the escapes that JSON needs; bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] std::string json_quoted(std::string_view text);

/// The whole report: the run's description and its `rows`.
[[nodiscard]] std::string results_json(const RunInfo& run, const std::vector<ResultRow>& rows);

}  // namespace terse::examples
