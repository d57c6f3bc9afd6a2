#include "report/csv.hpp"

#include <limits>

#include "examples/report/sample_rows.hpp"
#include "support/catch.hpp"

using terse::examples::csv_record;
using terse::examples::results_csv;

TEST_CASE("csv_record quotes only what RFC 4180 asks for", "[report]") {
  CHECK(csv_record({"a", "b c", ""}) == "a,b c,\r\n");
  CHECK(csv_record({"a,b", "say \"x\"", "two\nlines", "cr\r"}) ==
        "\"a,b\",\"say \"\"x\"\"\",\"two\nlines\",\"cr\r\"\r\n");
}

TEST_CASE("results_csv has a header and exact numbers", "[report]") {
  auto row = terse_test::sample_row("kivi-2", terse::examples::Family::two_bit, 3);
  row.mean_kl = 0.1;
  row.perplexity = 32.5;
  row.p99_kl = std::numeric_limits<double>::infinity();
  row.p999_kl = terse::examples::not_measured;
  const std::string csv = results_csv({row});
  CHECK(
      csv.find(
          "policy,description,family,bits_per_element,bytes_per_token,compression_ratio,share_read,"
          "mean_kl,median_kl,p99_kl,p999_kl,perplexity,delta_log_perplexity,"
          "delta_log_perplexity_error,top1_agreement,passkey_digits_right,passkey_nll,"
          "tokens_per_second,scored_positions\r\n") == 0);
  const std::string expected_start = "kivi-2,\"keys, \"\"values\"\"\",two_bit,4,5760,4,,0.1,";
  CHECK(csv.find("\r\n" + expected_start) != std::string::npos);
  INFO(csv);
  // Nothing between the commas for what is infinite or was not measured.
  CHECK(csv.find(",,,32.5,") != std::string::npos);
  CHECK(csv.substr(csv.size() - 8) == ",12276\r\n");
}
