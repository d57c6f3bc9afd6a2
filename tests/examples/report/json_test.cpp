#include "report/json.hpp"

#include <limits>

#include "examples/report/sample_rows.hpp"
#include "support/catch.hpp"

using terse::examples::compiler_name;
using terse::examples::Family;
using terse::examples::json_quoted;
using terse::examples::JsonWriter;
using terse::examples::not_measured;
using terse::examples::results_json;
using terse::examples::RunInfo;

TEST_CASE("json_quoted escapes what JSON forbids", "[report]") {
  CHECK(json_quoted("plain") == "\"plain\"");
  CHECK(json_quoted("a\"b\\c\n\t\r") == R"("a\"b\\c\n\t\r")");
  CHECK(json_quoted(std::string_view("\0\x1f", 2)) == R"("\u0000\u001f")");
}

TEST_CASE("json_quoted keeps UTF-8 and replaces what is not", "[report]") {
  const std::string good = "\xC3\xA9 \xE2\x89\xA4 \xF0\x9F\x98\x80";
  CHECK(json_quoted(good) == "\"" + good + "\"");
  const std::string replacement = "\xEF\xBF\xBD";
  CHECK(json_quoted("\xFFx") == "\"" + replacement + "x\"");
  // Cut short, overlong, a surrogate: one replacement a byte.
  CHECK(json_quoted("\xE2\x89") == "\"" + replacement + replacement + "\"");
  CHECK(json_quoted("\xC0\xAF") == "\"" + replacement + replacement + "\"");
  CHECK(json_quoted("\xED\xA0\x80") == "\"" + replacement + replacement + replacement + "\"");
}

TEST_CASE("JsonWriter nests", "[report]") {
  JsonWriter json;
  json.begin_object();
  json.member("a", 1).member("b", "x");
  json.key("list").begin_array().value(0.5).value(2.0).value("y").end_array();
  json.key("empty").begin_array().end_array();
  json.key("none").begin_object().end_object();
  json.member("nan", std::numeric_limits<double>::quiet_NaN());
  json.member("infinite", std::numeric_limits<double>::infinity());
  json.end_object();
  CHECK(json.text() == R"({
  "a": 1,
  "b": "x",
  "list": [
    0.5,
    2,
    "y"
  ],
  "empty": [],
  "none": {},
  "nan": null,
  "infinite": null
}
)");
}

TEST_CASE("results_json names every field", "[report]") {
  RunInfo run;
  run.program = "evaluate_policies";
  run.model_name = "small";
  run.model_path = "dir/model.gguf";
  run.model_sha256 = "00ff";
  run.texts = {{"p.txt", "aa11", 20000, {{0, 2048, 1023, 2047}}}};
  run.haystack = {"e.txt", "bb22", 30000, {{0, 1024}}};
  run.version = "0.1.0";
  run.compiler = compiler_name();
  run.instruction_set = "avx2";
  run.threads = 2;
  run.reference_perplexity = 29.5;
  run.options = {{"full", "true"}};
  auto row = terse_test::sample_row("int8", Family::eight_bit, 1);
  row.p999_kl = not_measured;
  const std::string json = results_json(run, {row, row});
  INFO(json);
  for (const char* line : {"\"program\": \"evaluate_policies\"",
                           "\"version\": \"0.1.0\"",
                           "\"instruction_set\": \"avx2\"",
                           "\"threads\": 2",
                           "\"sha256\": \"00ff\"",
                           "\"sha256\": \"aa11\"",
                           "\"skip_chars\": 20000",
                           "\"haystack\": {\n    \"name\": \"e.txt\",\n    \"path\": \"e.txt\"",
                           "\"reference\": {\n    \"perplexity\": 29.5\n",
                           "\"sha256\": \"bb22\"",
                           "\"last\": 1024\n",
                           "\"calibration\": null,",
                           "\"first\": 0",
                           "\"last\": 2048",
                           "\"scored_first\": 1023",
                           "\"scored_last\": 2047",
                           "\"full\": \"true\"",
                           "\"policy\": \"int8\"",
                           "\"family\": \"eight_bit\"",
                           "\"bits_per_element\": 8,",
                           "\"bytes_per_token\": 11520",
                           "\"compression_ratio\": 2,",
                           "\"mean_kl\": 0.003",
                           "\"median_kl\": 0.0012",
                           "\"p99_kl\": ",
                           "\"p999_kl\": null",
                           "\"perplexity\": 30.63",
                           "\"delta_log_perplexity\": 0.0312",
                           "\"delta_log_perplexity_error\": 0.0021",
                           "\"top1_agreement\": 0.98",
                           "\"passkey_digits_right\": 0.9",
                           "\"passkey_nll\": 0.35",
                           "\"tokens_per_second\": 41.25",
                           "\"scored_positions\": 12276",
                           "\"rows\": ["}) {
    CAPTURE(line);
    CHECK(json.find(line) != std::string::npos);
  }
  CHECK(json.find("\"compiler\": \"\"") == std::string::npos);
}
