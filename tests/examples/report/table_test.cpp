#include "report/table.hpp"

#include <sstream>
#include <stdexcept>

#include "examples/report/sample_rows.hpp"
#include "report/format.hpp"
#include "support/catch.hpp"

using terse::examples::Alignment;
using terse::examples::display_columns;
using terse::examples::Family;
using terse::examples::not_measured;
using terse::examples::result_table;
using terse::examples::Table;

TEST_CASE("plain text is aligned", "[report]") {
  Table table;
  table.add_column("name", Alignment::left);
  table.add_column("two\nlines", Alignment::right);
  table.add_column("n", Alignment::right);
  table.add_row({"a", "1.5", "10"});
  table.add_row({"longer \xCE\x94", "22.25", "7"});
  CHECK(table.plain_text() ==
        "            two\n"
        "name      lines   n\n"
        "--------  -----  --\n"
        "a           1.5  10\n"
        "longer \xCE\x94  22.25   7\n");
  CHECK_THROWS_AS(table.add_row({"too", "few"}), std::logic_error);
}

TEST_CASE("markdown keeps alignment and escapes bars", "[report]") {
  Table table;
  table.add_column("name", Alignment::left);
  table.add_column("KL\nmean", Alignment::right);
  table.add_row({"a|b", "1"});
  CHECK(table.markdown() ==
        "| name | KL mean |\n"
        "|---|---:|\n"
        "| a\\|b | 1 |\n");
}

TEST_CASE("result_table fits 140 columns", "[report]") {
  auto rows = terse_test::many_rows();
  rows[0].mean_kl = 2.1e-9;
  rows[0].median_kl = 3.456e-4;
  rows[1].policy = "policy of 26 characters ab";
  REQUIRE(rows[1].policy.size() == 26);
  std::istringstream lines(result_table(rows).plain_text());
  std::string line;
  std::size_t count = 0;
  while (std::getline(lines, line)) {
    ++count;
    CAPTURE(line);
    CHECK(display_columns(line) <= 140);
  }
  CHECK(count == rows.size() + 3);
}

TEST_CASE("result_table shows units a reader wants", "[report]") {
  auto row = terse_test::sample_row("kivi-2", Family::two_bit, 4);
  const std::string text = result_table({row}).markdown();
  INFO(text);
  for (const char* cell :
       {"| kivi-2 |", "| 3.20 |", "| 4,608 |", "| 5.00 |", "| 0.0480 |", "| 33.63 |", "| +0.1248 |",
        "| 0.0021 |", "| 92.0 |", "| 60.0 |", "| 0.95 |", "| 41.2 |"}) {
    CAPTURE(cell);
    CHECK(text.find(cell) != std::string::npos);
  }
}

TEST_CASE("columns nobody measured are left out, single gaps are dashes", "[report]") {
  auto row = terse_test::sample_row("a", Family::two_bit, 4);
  row.p999_kl = not_measured;
  row.passkey_nll = not_measured;
  auto other = row;
  other.passkey_nll = 0.5;
  const std::string text = result_table({row, other}).markdown();
  CHECK(text.find("99.9%") == std::string::npos);
  CHECK(text.find("key nll") != std::string::npos);
  CHECK(text.find("| - |") != std::string::npos);
}
