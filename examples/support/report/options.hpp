#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "report/input_error.hpp"

namespace terse::examples {

struct IntegerRange {
  std::int64_t minimum = std::numeric_limits<std::int64_t>::min();
  std::int64_t maximum = std::numeric_limits<std::int64_t>::max();
};

struct RealRange {
  double minimum = -std::numeric_limits<double>::infinity();
  double maximum = std::numeric_limits<double>::infinity();
};

/// A command line as a list of declarations. Each declaration names an option, the variable it
/// fills and one explanation; the variable's value at declaration is the default that `help` shows.
/// The variables must outlive `parse`.
///
/// Accepted: `--name VALUE`, `--name=VALUE`, `--flag`, `--help` and `-h`. A value that itself
/// starts with `--` needs the second form. Only repeatable options may be given twice; their first
/// occurrence replaces the default list.
class OptionParser {
 public:
  OptionParser(std::string program, std::string summary);

  /// Starts a titled group in the help text.
  OptionParser& section(std::string title);

  /// `--name` sets `*target` to true.
  OptionParser& flag(std::string name, bool* target, std::string explanation);

  /// A non-empty text, such as a path.
  OptionParser& text(std::string name, std::string value_name, std::string* target,
                     std::string explanation);

  /// A repeatable text.
  OptionParser& texts(std::string name, std::string value_name, std::vector<std::string>* target,
                      std::string explanation);

  OptionParser& integer(std::string name, std::string value_name, std::int64_t* target,
                        IntegerRange range, std::string explanation);
  OptionParser& integer(std::string name, std::string value_name, int* target, IntegerRange range,
                        std::string explanation);

  /// A finite number.
  OptionParser& real(std::string name, std::string value_name, double* target, RealRange range,
                     std::string explanation);

  /// One of `allowed`.
  OptionParser& choice(std::string name, std::string value_name, std::vector<std::string> allowed,
                       std::string* target, std::string explanation);

  /// Any subset of `allowed`: repeatable, and one value may be a list separated by commas. A value
  /// named twice counts once.
  OptionParser& choices(std::string name, std::string value_name, std::vector<std::string> allowed,
                        std::vector<std::string>* target, std::string explanation);

  /// A command shown at the end of the help text.
  OptionParser& example(std::string command, std::string explanation);

  /// Fills the variables. Returns false when help was asked for: print `help()` and end with exit
  /// code 0. Throws InputError for a bad command line; the variables are then unspecified.
  [[nodiscard]] bool parse(const std::vector<std::string>& arguments);
  /// As above for main's arguments, the program's name first.
  [[nodiscard]] bool parse(int argc, const char* const* argv);

  /// Whether the last `parse` met the option.
  [[nodiscard]] bool given(std::string_view name) const;

  [[nodiscard]] std::string help() const;

 private:
  struct Option {
    std::string name;
    std::string value_name;  // empty for a flag
    std::string explanation;
    std::string limits;
    std::string default_text;
    std::function<void(const std::string& value, bool is_first)> assign;
    std::size_t section = 0;
    bool is_repeatable = false;
    int times_given = 0;
  };
  struct Example {
    std::string command;
    std::string explanation;
  };

  Option& declare(std::string name, std::string value_name, std::string explanation);
  [[nodiscard]] Option* find(std::string_view name);
  [[nodiscard]] InputError unknown_option(const std::string& name) const;

  std::string program_;
  std::string summary_;
  std::vector<std::string> sections_;
  std::vector<Option> options_;
  std::vector<Example> examples_;
};

/// Smallest number of insertions, deletions, substitutions and swaps of neighbours that turns `a`
/// into `b` (optimal string alignment).
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate nearest to `word`, or an empty text when none is near enough to be a slip.
[[nodiscard]] std::string nearest_word(std::string_view word,
                                       const std::vector<std::string>& candidates);

}  // namespace terse::examples
