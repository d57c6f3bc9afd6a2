#include "report/options.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "report/format.hpp"

namespace terse::examples {
namespace {

constexpr std::size_t help_columns = 96;
constexpr std::size_t explanation_column = 28;

std::string join(const std::vector<std::string>& words, std::string_view separator) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += separator;
    text += word;
  }
  return text;
}

template <class T>
std::string range_text(T minimum, T maximum, bool has_minimum, bool has_maximum) {
  const auto text = [](T value) {
    if constexpr (std::is_integral_v<T>) {
      return std::to_string(value);
    } else {
      return format_exact(value);
    }
  };
  if (has_minimum && has_maximum) return "from " + text(minimum) + " to " + text(maximum);
  if (has_minimum) return "at least " + text(minimum);
  if (has_maximum) return "at most " + text(maximum);
  return {};
}

std::string range_text(IntegerRange range) {
  const IntegerRange open;
  return range_text(range.minimum, range.maximum, range.minimum != open.minimum,
                    range.maximum != open.maximum);
}

std::string range_text(RealRange range) {
  return range_text(range.minimum, range.maximum, std::isfinite(range.minimum),
                    std::isfinite(range.maximum));
}

template <class T>
bool read_number(std::string_view text, T& value) {
  if (text.size() > 1 && text.front() == '+' && text[1] != '-') text.remove_prefix(1);
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size();
}

std::int64_t read_integer(const std::string& name, const std::string& text, IntegerRange range) {
  std::int64_t value = 0;
  if (!read_number(text, value)) {
    throw InputError("--" + name + " needs an integer, got '" + text + "'");
  }
  if (value < range.minimum || value > range.maximum) {
    throw InputError("--" + name + " must be " + range_text(range) + ", got " + text);
  }
  return value;
}

const std::string& read_choice(const std::string& name, const std::string& text,
                               const std::vector<std::string>& allowed) {
  const auto found = std::find(allowed.begin(), allowed.end(), text);
  if (found != allowed.end()) return *found;
  const std::string near = nearest_word(text, allowed);
  throw InputError("--" + name + ": unknown value '" + text + "'" +
                   (near.empty() ? std::string() : "; did you mean '" + near + "'?") +
                   " (known: " + join(allowed, ", ") + ")");
}

void append_wrapped(std::string& out, const std::string& text, std::size_t indent) {
  bool is_first = true;
  for (const std::string& line : wrap_text(text, help_columns - indent)) {
    if (!is_first) out.append(indent, ' ');
    out += line + "\n";
    is_first = false;
  }
}

}  // namespace

OptionParser::OptionParser(std::string program, std::string summary)
    : program_(std::move(program)), summary_(std::move(summary)), sections_{"Options"} {}

OptionParser& OptionParser::section(std::string title) {
  sections_.push_back(std::move(title));
  return *this;
}

OptionParser::Option& OptionParser::declare(std::string name, std::string value_name,
                                            std::string explanation) {
  if (find(name) != nullptr || name == "help") {
    throw std::logic_error("option --" + name + " is declared twice");
  }
  Option option;
  option.name = std::move(name);
  option.value_name = std::move(value_name);
  option.explanation = std::move(explanation);
  option.section = sections_.size() - 1;
  options_.push_back(std::move(option));
  return options_.back();
}

OptionParser& OptionParser::flag(std::string name, bool* target, std::string explanation) {
  Option& option = declare(std::move(name), "", std::move(explanation));
  option.assign = [target](const std::string&, bool) { *target = true; };
  return *this;
}

OptionParser& OptionParser::text(std::string name, std::string value_name, std::string* target,
                                 std::string explanation) {
  Option& option = declare(std::move(name), std::move(value_name), std::move(explanation));
  option.default_text = *target;
  option.assign = [target](const std::string& value, bool) { *target = value; };
  return *this;
}

OptionParser& OptionParser::texts(std::string name, std::string value_name,
                                  std::vector<std::string>* target, std::string explanation) {
  Option& option = declare(std::move(name), std::move(value_name), std::move(explanation));
  option.default_text = join(*target, ", ");
  option.is_repeatable = true;
  option.assign = [target](const std::string& value, bool is_first) {
    if (is_first) target->clear();
    target->push_back(value);
  };
  return *this;
}

OptionParser& OptionParser::integer(std::string name, std::string value_name, std::int64_t* target,
                                    IntegerRange range, std::string explanation) {
  Option& option = declare(name, std::move(value_name), std::move(explanation));
  option.default_text = std::to_string(*target);
  option.limits = range_text(range);
  option.assign = [name = std::move(name), target, range](const std::string& value, bool) {
    *target = read_integer(name, value, range);
  };
  return *this;
}

OptionParser& OptionParser::integer(std::string name, std::string value_name, int* target,
                                    IntegerRange range, std::string explanation) {
  range.minimum = std::max<std::int64_t>(range.minimum, std::numeric_limits<int>::min());
  range.maximum = std::min<std::int64_t>(range.maximum, std::numeric_limits<int>::max());
  Option& option = declare(name, std::move(value_name), std::move(explanation));
  option.default_text = std::to_string(*target);
  IntegerRange shown = range;
  if (range.minimum == std::numeric_limits<int>::min()) shown.minimum = IntegerRange{}.minimum;
  if (range.maximum == std::numeric_limits<int>::max()) shown.maximum = IntegerRange{}.maximum;
  option.limits = range_text(shown);
  option.assign = [name = std::move(name), target, range](const std::string& value, bool) {
    *target = static_cast<int>(read_integer(name, value, range));
  };
  return *this;
}

OptionParser& OptionParser::real(std::string name, std::string value_name, double* target,
                                 RealRange range, std::string explanation) {
  Option& option = declare(name, std::move(value_name), std::move(explanation));
  option.default_text = format_exact(*target);
  option.limits = range_text(range);
  option.assign = [name = std::move(name), target, range](const std::string& text, bool) {
    double value = 0;
    if (!read_number(text, value) || !std::isfinite(value)) {
      throw InputError("--" + name + " needs a number, got '" + text + "'");
    }
    if (value < range.minimum || value > range.maximum) {
      throw InputError("--" + name + " must be " + range_text(range) + ", got " + text);
    }
    *target = value;
  };
  return *this;
}

OptionParser& OptionParser::choice(std::string name, std::string value_name,
                                   std::vector<std::string> allowed, std::string* target,
                                   std::string explanation) {
  Option& option = declare(name, std::move(value_name), std::move(explanation));
  option.default_text = *target;
  option.limits = "one of " + join(allowed, ", ");
  option.assign = [name = std::move(name), target, allowed = std::move(allowed)](
                      const std::string& value, bool) {
    *target = read_choice(name, value, allowed);
  };
  return *this;
}

OptionParser& OptionParser::choices(std::string name, std::string value_name,
                                    std::vector<std::string> allowed,
                                    std::vector<std::string>* target, std::string explanation) {
  Option& option = declare(name, std::move(value_name), std::move(explanation));
  option.default_text = join(*target, ",");
  option.limits = "any of " + join(allowed, ", ");
  option.is_repeatable = true;
  option.assign = [name = std::move(name), target, allowed = std::move(allowed)](
                      const std::string& value, bool is_first) {
    if (is_first) target->clear();
    for (std::size_t start = 0; start <= value.size();) {
      const std::size_t end = std::min(value.find(',', start), value.size());
      const std::string& word = read_choice(name, value.substr(start, end - start), allowed);
      if (std::find(target->begin(), target->end(), word) == target->end()) {
        target->push_back(word);
      }
      start = end + 1;
    }
  };
  return *this;
}

OptionParser& OptionParser::example(std::string command, std::string explanation) {
  examples_.push_back({std::move(command), std::move(explanation)});
  return *this;
}

OptionParser::Option* OptionParser::find(std::string_view name) {
  const auto found = std::find_if(options_.begin(), options_.end(),
                                  [name](const Option& option) { return option.name == name; });
  return found == options_.end() ? nullptr : &*found;
}

InputError OptionParser::unknown_option(const std::string& name) const {
  std::vector<std::string> known = {"help"};
  for (const Option& option : options_) known.push_back(option.name);
  const std::string near = nearest_word(name, known);
  return InputError("unknown option --" + name +
                    (near.empty() ? "; --help lists all" : "; did you mean --" + near + "?"));
}

bool OptionParser::parse(const std::vector<std::string>& arguments) {
  for (Option& option : options_) option.times_given = 0;
  // Help wins over any mistake beside it: whoever asks for it is still looking for the right form.
  for (const std::string& argument : arguments) {
    if (argument == "--help" || argument == "-h") return false;
  }
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with("--") || argument.size() == 2) {
      throw InputError("unexpected argument '" + argument + "': options start with --");
    }
    const std::size_t equals = argument.find('=');
    const bool has_inline_value = equals != std::string::npos;
    const std::string name = argument.substr(2, has_inline_value ? equals - 2 : equals);
    Option* option = find(name);
    if (option == nullptr) throw unknown_option(name);
    if (option->times_given > 0 && !option->is_repeatable) {
      throw InputError("--" + name + " is given twice");
    }
    std::string value;
    if (option->value_name.empty()) {
      if (has_inline_value) throw InputError("--" + name + " takes no value");
    } else {
      if (has_inline_value) {
        value = argument.substr(equals + 1);
      } else if (i + 1 < arguments.size() && !arguments[i + 1].starts_with("--")) {
        value = arguments[++i];
      }
      if (value.empty()) throw InputError("--" + name + " needs a value: " + option->value_name);
    }
    option->assign(value, option->times_given == 0);
    ++option->times_given;
  }
  return true;
}

bool OptionParser::parse(int argc, const char* const* argv) {
  return parse(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
}

bool OptionParser::given(std::string_view name) const {
  return std::any_of(options_.begin(), options_.end(), [name](const Option& option) {
    return option.name == name && option.times_given > 0;
  });
}

std::string OptionParser::help() const {
  std::string out = "usage: " + program_ + " [options]\n\n";
  append_wrapped(out, summary_, 0);
  const auto append_option = [&out](std::string head, const std::string& explanation) {
    head.insert(0, "  ");
    if (display_columns(head) + 2 > explanation_column) {
      out += head + "\n" + std::string(explanation_column, ' ');
    } else {
      out += head + std::string(explanation_column - display_columns(head), ' ');
    }
    append_wrapped(out, explanation, explanation_column);
  };
  for (std::size_t section = 0; section < sections_.size(); ++section) {
    bool is_titled = false;
    for (const Option& option : options_) {
      if (option.section != section) continue;
      if (!is_titled) out += "\n" + sections_[section] + ":\n";
      is_titled = true;
      std::vector<std::string> notes;
      if (!option.limits.empty()) notes.push_back(option.limits);
      if (option.is_repeatable) notes.emplace_back("repeatable");
      if (!option.default_text.empty()) notes.push_back("default: " + option.default_text);
      append_option("--" + option.name + (option.value_name.empty() ? "" : " " + option.value_name),
                    option.explanation + (notes.empty() ? "" : " (" + join(notes, "; ") + ")"));
    }
  }
  out += "\n";
  append_option("--help", "Shows this text.");
  if (!examples_.empty()) out += "\nExamples:\n";
  for (const Example& shown : examples_) {
    out += "  " + shown.command + "\n      ";
    append_wrapped(out, shown.explanation, 6);
  }
  return out;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> cost(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) cost[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1,
                             cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0U : 1U)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
      }
    }
  }
  return cost[a.size()][b.size()];
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  std::string nearest;
  std::size_t nearest_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    // A word cut short is a slip too: its missing end is not counted in full.
    const bool is_prefix = word.size() >= 3 && candidate.starts_with(word);
    const std::size_t distance = is_prefix ? 1 : edit_distance(word, candidate);
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace terse::examples
