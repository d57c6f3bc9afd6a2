#include "report/options.hpp"

#include <optional>
#include <sstream>

#include "support/catch.hpp"

using terse::examples::edit_distance;
using terse::examples::InputError;
using terse::examples::nearest_word;
using terse::examples::OptionParser;

namespace {

struct Settings {
  std::string model = "default.gguf";
  std::vector<std::string> texts = {"a.txt", "b.txt"};
  std::vector<std::string> policies = {"all"};
  std::string mode = "own-tail";
  std::int64_t skip = 0;
  std::int64_t tokens = 2048;
  int threads = 0;
  double scale = 1;
  bool full = false;
};

OptionParser make_parser(Settings& settings) {
  OptionParser parser("evaluate_policies", "Shows what each cache policy costs and saves.");
  parser.section("Model and text")
      .text("model", "FILE", &settings.model, "A GGUF file.")
      .texts("text", "FILE", &settings.texts, "A text to read.")
      .integer("skip-chars", "N", &settings.skip, {.minimum = 0}, "Characters left out.")
      .integer("tokens", "N", &settings.tokens, {.minimum = 16, .maximum = 8192}, "Window length.");
  parser.section("What runs")
      .choices("policy", "NAME", {"all", "identity", "int8", "kivi-2"}, &settings.policies,
               "Rows to show.")
      .choice("mode", "MODE", {"own-tail", "chunks"}, &settings.mode, "What a query sees exactly.")
      .integer("threads", "N", &settings.threads, {.minimum = 0, .maximum = 256}, "Threads.")
      .real("scale", "X", &settings.scale, {.minimum = 0.5, .maximum = 2}, "A factor.")
      .flag("full", &settings.full, "Everything.");
  parser.example("evaluate_policies --policy int8", "One row only.");
  return parser;
}

// The message of the error, or nothing where the arguments pass.
std::optional<std::string> error_of(const std::vector<std::string>& arguments) {
  Settings settings;
  OptionParser parser = make_parser(settings);
  try {
    (void)parser.parse(arguments);
  } catch (const InputError& error) {
    return error.what();
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE("defaults stand without arguments", "[report]") {
  Settings settings;
  OptionParser parser = make_parser(settings);
  CHECK(parser.parse(std::vector<std::string>{}));
  CHECK(settings.model == "default.gguf");
  CHECK(settings.texts.size() == 2);
  CHECK(settings.tokens == 2048);
  CHECK_FALSE(settings.full);
  CHECK_FALSE(parser.given("model"));
}

TEST_CASE("options fill their variables", "[report]") {
  Settings settings;
  OptionParser parser = make_parser(settings);
  REQUIRE(parser.parse({"--model",       "m.gguf", "--tokens=4096", "--text",      "one",
                        "--text",        "two",    "--skip-chars",  "20000",       "--scale",
                        "1.5",           "--full", "--policy",      "int8,kivi-2", "--policy",
                        "identity,int8", "--mode", "chunks",        "--threads",   "2"}));
  CHECK(settings.model == "m.gguf");
  CHECK(settings.tokens == 4096);
  CHECK(settings.texts == std::vector<std::string>{"one", "two"});
  CHECK(settings.skip == 20000);
  CHECK(settings.scale == 1.5);
  CHECK(settings.full);
  CHECK(settings.policies == std::vector<std::string>{"int8", "kivi-2", "identity"});
  CHECK(settings.mode == "chunks");
  CHECK(settings.threads == 2);
  CHECK(parser.given("tokens"));
}

TEST_CASE("parse takes main's arguments", "[report]") {
  Settings settings;
  OptionParser parser = make_parser(settings);
  const char* const arguments[] = {"program", "--model", "x", nullptr};
  CHECK(parser.parse(3, arguments));
  CHECK(settings.model == "x");
  CHECK(parser.parse(0, arguments));
}

TEST_CASE("an unknown option suggests the nearest", "[report]") {
  CHECK(error_of({"--modle", "x"}) == "unknown option --modle; did you mean --model?");
  CHECK(error_of({"--polcy=int8"}) == "unknown option --polcy; did you mean --policy?");
  CHECK(error_of({"--hlep"}) == "unknown option --hlep; did you mean --help?");
  CHECK(error_of({"--skip"}) == "unknown option --skip; did you mean --skip-chars?");
  CHECK(error_of({"--zzzzzz"}) == "unknown option --zzzzzz; --help lists all");
}

TEST_CASE("bad values get an error that says what would be right", "[report]") {
  CHECK(error_of({"--tokens", "15"}) == "--tokens must be from 16 to 8192, got 15");
  CHECK(error_of({"--tokens", "8193"}).has_value());
  CHECK_FALSE(error_of({"--tokens", "8192"}).has_value());
  CHECK_FALSE(error_of({"--tokens", "16"}).has_value());
  CHECK(error_of({"--tokens", "12x"}) == "--tokens needs an integer, got '12x'");
  CHECK(error_of({"--tokens", "99999999999999999999"}).has_value());
  CHECK(error_of({"--tokens", "1e3"}).has_value());
  CHECK(error_of({"--skip-chars", "-5"}) == "--skip-chars must be at least 0, got -5");
  CHECK(error_of({"--threads", "99999999999"}).has_value());
  CHECK(error_of({"--scale", "nan"}) == "--scale needs a number, got 'nan'");
  CHECK(error_of({"--scale", "2.5"}) == "--scale must be from 0.5 to 2, got 2.5");
  CHECK(error_of({"--mode", "chunk"}) ==
        "--mode: unknown value 'chunk'; did you mean 'chunks'? (known: own-tail, chunks)");
  CHECK(error_of({"--policy", "int8,"}).has_value());
  CHECK(error_of({"--policy", "int8,kivi2"}).value().find("did you mean 'kivi-2'?") !=
        std::string::npos);
}

TEST_CASE("a malformed command line gets an error", "[report]") {
  CHECK(error_of({"--model"}) == "--model needs a value: FILE");
  CHECK(error_of({"--model", "--full"}) == "--model needs a value: FILE");
  CHECK(error_of({"--model="}) == "--model needs a value: FILE");
  CHECK_FALSE(error_of({"--model=--odd"}).has_value());
  CHECK(error_of({"--full=yes"}) == "--full takes no value");
  CHECK(error_of({"--model", "a", "--model", "b"}) == "--model is given twice");
  CHECK(error_of({"m.gguf"}) == "unexpected argument 'm.gguf': options start with --");
  CHECK(error_of({"--"}).has_value());
  CHECK(error_of({"-x"}).has_value());
}

TEST_CASE("help explains every option", "[report]") {
  Settings settings;
  OptionParser parser = make_parser(settings);
  CHECK_FALSE(parser.parse({"--nonsense", "--help"}));
  CHECK_FALSE(parser.parse({"-h"}));
  // Where lines break does not matter here.
  std::string help;
  for (const char c : parser.help()) {
    const bool is_space = c == ' ' || c == '\n';
    if (!is_space || help.empty() || help.back() != ' ') help += is_space ? ' ' : c;
  }
  INFO(help);
  for (const char* part :
       {"usage: evaluate_policies [options]", "Shows what each cache policy costs",
        "Model and text:", "What runs:", "--model FILE", "A GGUF file. (default: default.gguf)",
        "(repeatable; default: a.txt, b.txt)", "(from 16 to 8192; default: 2048)",
        "any of all, identity, int8, kivi-2; repeatable; default: all",
        "one of own-tail, chunks; default: own-tail", "--full ", "--help ",
        "Examples:", "One row only."}) {
    CAPTURE(part);
    CHECK(help.find(part) != std::string::npos);
  }
  CHECK(help.find("Options:") == std::string::npos);
  std::istringstream lines(parser.help());
  for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 96);
}

TEST_CASE("edit_distance", "[report]") {
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("modle", "model") == 1);
  CHECK(edit_distance("same", "same") == 0);
  CHECK(nearest_word("int", {"int4-rotated", "fp8"}) == "int4-rotated");
  CHECK(nearest_word("x", {"abcdef"}).empty());
}
