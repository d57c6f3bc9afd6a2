#include "settings.hpp"

#include <algorithm>
#include <iostream>
#include <thread>

#include "evaluation/policies.hpp"
#include "report/input_error.hpp"
#include "report/options.hpp"

namespace terse::examples {

namespace {

std::vector<std::string> all_names() {
  std::vector<std::string> names;
  for (const PolicyRow& row : policy_rows()) names.push_back(row.name);
  return names;
}

/// The rows that were not named one by one: all, or the short table.
std::vector<std::string> rows_of_table(bool all, Processor processor) {
  std::vector<std::string> names;
  for (const PolicyRow& row : policy_rows()) {
    if (!row.on_device && processor == Processor::cuda) continue;
    if (all || row.in_default) names.push_back(row.name);
  }
  return names;
}

/// "0,3,7" as numbers.
std::vector<int> window_numbers_of(const std::string& list) {
  std::vector<int> numbers;
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string part = list.substr(begin, end - begin);
    if (part.empty() || part.size() > 4 ||
        part.find_first_not_of("0123456789") != std::string::npos) {
      throw InputError(std::string("--window-numbers ")
                           .append(list)
                           .append(": '")
                           .append(part)
                           .append("' is no number from 0 to 9999"));
    }
    const int number = std::stoi(part);
    if (!numbers.empty() && number <= numbers.back()) {
      throw InputError("--window-numbers " + list + ": numbers must rise");
    }
    numbers.push_back(number);
    begin = end + 1;
  }
  return numbers;
}

void print_policies() {
  for (const PolicyRow& row : policy_rows()) {
    std::cout << row.name << std::string(row.name.size() < 26 ? 26 - row.name.size() : 1, ' ')
              << row.description << (row.in_default ? "" : "  (not in the short table)") << '\n';
  }
}

}  // namespace

bool read_settings(int argc, const char* const* argv, Settings* s) {
  std::string tail = "own", device = "cpu", numbers;
  std::vector<std::string> choices = all_names();
  choices.emplace_back("all");
  OptionParser parser("evaluate_policies",
                      "Runs a language model over real text with its keys and values in terse "
                      "caches, and shows what each policy costs and saves.");
  parser.section("Input")
      .text("model", "FILE", &s->model_path,
            "GGUF file of a Llama model (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q6_K)")
      .texts("text", "FILE", &s->text_paths, "text to predict; may be given several times")
      .integer("skip-chars", "N", &s->skip_chars, {0, 1'000'000'000},
               "bytes of each text to skip before its first window")
      .integer("tokens", "N", &s->window_tokens, {64, 1 << 20},
               "tokens of a window; the second half is scored")
      .integer("windows", "N", &s->windows, {1, 1000}, "windows of each text, one after another")
      .text("window-numbers", "LIST", &numbers,
            "instead, the windows of these numbers, the first being 0, such as 0,3,7")
      .text("haystack", "FILE", &s->haystack_path,
            "text that passkeys are hidden in, from byte " +
                std::to_string(Settings::haystack_skip_chars) + " on (default: the first text)")
      .text("calibration-text", "FILE", &s->calibration_path,
            "text that low-rank factors and calibrations are computed from, after --skip-chars "
            "bytes (default: the last text); of a text that is scored too, what follows its "
            "windows is taken")
      .integer("calibration-tokens", "N", &s->calibration_tokens, {256, 1 << 20},
               "tokens of that text to use")
      .text("calibration", "FILE", &s->calibration_file,
            "calibration of the model for the shaped-* policies, written by calibrate (default: "
            "one made of the calibration text)");
  parser.section("What to run")
      .choices("policy", "NAME", choices, &s->policies,
               "policies to run; `all` means every one (default: the short table)")
      .texts(
          "schedule", "FILE", &s->schedule_paths,
          "also run the schedule of policies by layer in this file, written by schedule_bits, as "
          "a row of the file's name; may be given several times")
      .flag("list-policies", &s->list_policies, "print all policies with a line of explanation")
      .flag("full", &s->full, "every policy, five windows of each text, twelve passkeys")
      .choice("tail", "RULE", {"own", "chunk-128"}, &tail,
              "own: each policy's rule for exact tokens and for the time of eviction. chunk-128: a "
              "query reads its own chunk of 128 tokens exactly and all before it decoded, and "
              "eviction follows every 128 tokens. That changes the rows that evict (H2O then "
              "protects the first 4 and the newest 64 tokens), fp8-tail, int4-rotated-tail, "
              "aligned-*, kvquant-* and the shaped-* with a tail; kivi-*, kvarn-* and "
              "turboquant-*-tail have "
              "this rule anyway, and the other rows decode every token under both")
      .integer("passkeys", "N", &s->passkeys, {0, 1000},
               "passkeys to ask for; 0: none. Without this option there are none for a model whose "
               "tokeniser joins digits")
      .integer("passkey-tokens", "N", &s->passkey_tokens, {128, 1 << 20},
               "tokens of a passkey case")
      .integer("speed-steps", "N", &s->speed_steps, {0, 10000},
               "tokens decoded to measure speed at a full window; 0: no speed")
      .choice("device", "NAME", {"cpu", "cuda"}, &device,
              "cuda: caches lie on the GPU, and cuBLAS makes the model's products")
      .integer("threads", "N", &s->threads, {0, 1024}, "threads; 0: one for each processor");
  parser.section("Output")
      .text("csv", "FILE", &s->csv_path, "write the table as CSV")
      .text("markdown", "FILE", &s->markdown_path, "write the table as Markdown")
      .text("svg", "FILE", &s->svg_path, "write a plot of quality against bytes")
      .text("json", "FILE", &s->json_path, "write everything as JSON");
  parser.example("evaluate_policies --model m.gguf --text novel.txt",
                 "the short table for one text");
  parser.example("evaluate_policies --model m.gguf --text novel.txt --policy kivi-2,h2o-50",
                 "two rows only");
  if (!parser.parse(argc, argv)) {
    std::cout << parser.help();
    return false;
  }
  if (s->list_policies) {
    print_policies();
    return false;
  }
  if (s->model_path.empty()) throw InputError("--model is missing; see --help");
  if (s->text_paths.empty()) throw InputError("--text is missing; see --help");
  s->chunk_tail = tail == "chunk-128";
  s->processor = device == "cuda" ? Processor::cuda : Processor::cpu;
  s->passkeys_given = parser.given("passkeys");
  if (s->full) {
    if (!parser.given("windows")) s->windows = 5;
    if (!s->passkeys_given) s->passkeys = 12;
  }
  if (numbers.empty()) {
    for (int i = 0; i < s->windows; ++i) s->window_numbers.push_back(i);
  } else if (parser.given("windows")) {
    throw InputError("--windows and --window-numbers exclude each other");
  } else {
    s->window_numbers = window_numbers_of(numbers);
  }
  const bool wants_all =
      std::find(s->policies.begin(), s->policies.end(), "all") != s->policies.end() ||
      (s->full && s->policies.empty());
  if (wants_all || s->policies.empty()) s->policies = rows_of_table(wants_all, s->processor);
  if (s->threads == 0) {
    s->threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  if (s->haystack_path.empty()) s->haystack_path = s->text_paths.front();
  if (s->calibration_path.empty()) s->calibration_path = s->text_paths.back();
  return true;
}

}  // namespace terse::examples
