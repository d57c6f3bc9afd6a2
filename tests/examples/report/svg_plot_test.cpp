#include "report/svg_plot.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "examples/report/sample_rows.hpp"
#include "support/catch.hpp"

using terse::examples::Family;
using terse::examples::family_name;
using terse::examples::not_measured;
using terse::examples::quality_plot_svg;
using terse::examples::RunInfo;

namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

// Every element is closed in order, attributes are quoted, no stray bracket or bare ampersand.
bool is_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = xml.find("?>") + 2; at < xml.size();) {
    if (xml[at] == '&' && xml.find(';', at) > at + 5) return false;
    if (xml[at] == '>') return false;
    if (xml[at] != '<') {
      ++at;
      continue;
    }
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    if (tag.find('<') != std::string::npos || count(tag, "\"") % 2 != 0) return false;
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    at = end + 1;
  }
  return open.empty();
}

bool has_text(const std::string& svg, std::string_view content) {
  return svg.find(std::string(1, '>').append(content).append("</text>")) != std::string::npos;
}

RunInfo sample_run() {
  RunInfo run;
  run.model_name = "model <135M> & \"friends\"";
  run.texts = {{"Persuasion", "", 0, {}}, {"emma.txt", "", 0, {}}};
  return run;
}

}  // namespace

TEST_CASE("the plot shows every policy in both panels", "[report]") {
  const auto rows = terse_test::many_rows();
  const std::string svg = quality_plot_svg(sample_run(), rows);
  REQUIRE(is_well_formed(svg));
  CHECK(svg.find("<?xml") == 0);
  CHECK(svg.find("xmlns=\"http://www.w3.org/2000/svg\"") != std::string::npos);
  CHECK(svg.find("prefers-color-scheme: dark") != std::string::npos);
  CHECK(svg.find("model &lt;135M&gt; &amp; &quot;friends&quot; on Persuasion, emma.txt") !=
        std::string::npos);
  CHECK(svg.find("12,276 positions scored") != std::string::npos);
  CHECK(svg.find("bytes per token") != std::string::npos);
  CHECK(svg.find("mean KL divergence") != std::string::npos);
  CHECK(svg.find("passkey digits right") != std::string::npos);
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("inf") == std::string::npos);
  for (const auto& row : rows) {
    CAPTURE(row.policy);
    CHECK(has_text(svg, row.policy));
    CHECK(count(svg, std::string("<title>").append(row.policy).append(": ")) == 2);
  }
  for (const Family family : {Family::eight_bit, Family::four_bit, Family::two_bit,
                              Family::eviction, Family::low_rank, Family::composition}) {
    CHECK(has_text(svg, family_name(family)));
  }
  CHECK(svg == quality_plot_svg(sample_run(), rows));
}

TEST_CASE("a divergence of nothing stands on the floor with its value", "[report]") {
  auto identity = terse_test::sample_row("identity", Family::eight_bit, 0);
  identity.mean_kl = 2.1e-9;
  const auto other = terse_test::sample_row("int8", Family::eight_bit, 1);
  const std::string svg = quality_plot_svg(sample_run(), {identity, other});
  CHECK(is_well_formed(svg));
  CHECK(has_text(svg, "identity (2.1e-09)"));
  CHECK(has_text(svg, "\xE2\x89\xA4 0.001"));
  CHECK(has_text(svg, "int8"));
  CHECK_FALSE(has_text(svg, "4 bits"));
}

TEST_CASE("plots of little or nothing are valid", "[report]") {
  auto row = terse_test::sample_row("int8", Family::eight_bit, 1);
  const std::string one = quality_plot_svg(sample_run(), {row});
  CHECK(is_well_formed(one));
  CHECK(one.find("nan") == std::string::npos);

  row.mean_kl = 0;
  row.compression_ratio = not_measured;
  const std::string zero = quality_plot_svg(sample_run(), {row});
  CHECK(is_well_formed(zero));
  CHECK(has_text(zero, "int8 (0)"));
  CHECK(zero.find("times smaller") == std::string::npos);

  row.passkey_digits_right = not_measured;
  CHECK(quality_plot_svg(sample_run(), {row}).find("passkey") == std::string::npos);

  row.mean_kl = not_measured;
  const std::string none = quality_plot_svg(sample_run(), {row});
  CHECK(is_well_formed(none));
  CHECK(none.find("No policy was measured.") != std::string::npos);
  CHECK(is_well_formed(quality_plot_svg(RunInfo{}, {})));
}
