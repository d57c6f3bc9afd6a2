#include "report/json.hpp"

#include <cmath>
#include <utility>

#include "report/format.hpp"
#include "report/result_fields.hpp"
#include "report/utf8.hpp"

namespace terse::examples {
namespace {

void write_text(JsonWriter& json, const TextInfo& text) {
  json.begin_object();
  json.member("name", text.name);
  json.member("path", text.name);
  json.member("sha256", text.sha256);
  json.member("skip_chars", text.skip_chars);
  json.key("token_ranges").begin_array();
  for (const TokenRange& range : text.token_ranges) {
    json.begin_object();
    json.member("first", range.first);
    json.member("last", range.last);
    if (range.scored_last > 0) {
      json.member("scored_first", range.scored_first);
      json.member("scored_last", range.scored_last);
    }
    json.end_object();
  }
  json.end_array();
  json.end_object();
}

}  // namespace

std::string json_quoted(std::string_view text) {
  constexpr std::string_view hex = "0123456789abcdef";
  std::string out = "\"";
  while (!text.empty()) {
    const DecodedCharacter decoded = decode_utf8(text);
    if (decoded.code >= 0x80) {
      out += decoded.code == invalid_character ? std::string_view("\xEF\xBF\xBD")
                                               : text.substr(0, decoded.bytes);
      text.remove_prefix(decoded.bytes);
      continue;
    }
    const char c = text.front();
    text.remove_prefix(1);
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else if (code < 0x20U || code == 0x7FU) {
      out += "\\u00";
      out += hex[code >> 4U];
      out += hex[code & 15U];
    } else {
      out += c;
    }
  }
  return out + '"';
}

void JsonWriter::new_line() {
  text_ += '\n';
  text_.append(2 * has_members_.size(), ' ');
}

void JsonWriter::begin_value() {
  if (is_after_key_) {
    is_after_key_ = false;
    return;
  }
  if (has_members_.empty()) return;
  if (has_members_.back()) text_ += ',';
  has_members_.back() = true;
  new_line();
}

JsonWriter& JsonWriter::open(char bracket) {
  begin_value();
  text_ += bracket;
  has_members_.push_back(false);
  return *this;
}

JsonWriter& JsonWriter::close(char bracket) {
  const bool had_members = has_members_.back();
  has_members_.pop_back();
  if (had_members) new_line();
  text_ += bracket;
  if (has_members_.empty()) text_ += '\n';
  return *this;
}

JsonWriter& JsonWriter::begin_object() { return open('{'); }
JsonWriter& JsonWriter::end_object() { return close('}'); }
JsonWriter& JsonWriter::begin_array() { return open('['); }
JsonWriter& JsonWriter::end_array() { return close(']'); }

JsonWriter& JsonWriter::key(std::string_view name) {
  begin_value();
  text_ += json_quoted(name) + ": ";
  is_after_key_ = true;
  return *this;
}

JsonWriter& JsonWriter::value(std::string_view text) {
  begin_value();
  text_ += json_quoted(text);
  return *this;
}

JsonWriter& JsonWriter::value(double number) {
  begin_value();
  text_ += std::isfinite(number) ? format_exact(number) : "null";
  return *this;
}

JsonWriter& JsonWriter::value(long long number) {
  begin_value();
  text_ += std::to_string(number);
  return *this;
}

JsonWriter& JsonWriter::null() {
  begin_value();
  text_ += "null";
  return *this;
}

std::string results_json(const RunInfo& run, const std::vector<ResultRow>& rows) {
  JsonWriter json;
  json.begin_object();
  json.member("program", run.program);
  json.member("version", run.version);
  json.member("compiler", run.compiler);
  json.member("instruction_set", run.instruction_set);
  json.member("threads", run.threads);
  json.key("model").begin_object();
  json.member("name", run.model_name);
  json.member("path", run.model_path);
  json.member("sha256", run.model_sha256);
  json.end_object();
  json.key("texts").begin_array();
  for (const TextInfo& text : run.texts) write_text(json, text);
  json.end_array();
  for (const auto& [name, text] :
       {std::pair{"haystack", &run.haystack}, std::pair{"calibration", &run.calibration}}) {
    json.key(name);
    if (text->has_value()) {
      write_text(json, **text);
    } else {
      json.null();
    }
  }
  json.key("options").begin_object();
  for (const auto& [name, value] : run.options) json.member(name, value);
  json.end_object();
  json.key("reference").begin_object();
  json.member("perplexity", run.reference_perplexity);
  json.end_object();
  json.key("rows").begin_array();
  for (const ResultRow& row : rows) {
    json.begin_object();
    json.member("policy", row.policy);
    json.member("description", row.description);
    json.member("family", family_key(row.family));
    for (const ResultField& field : result_fields) json.member(field.name, row.*field.value);
    json.member("scored_positions", row.scored_positions);
    json.end_object();
  }
  json.end_array();
  json.end_object();
  return json.text();
}

}  // namespace terse::examples
