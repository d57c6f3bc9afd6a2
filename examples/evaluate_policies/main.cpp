/// evaluate_policies: what each cache policy costs and saves on a real model and real text.

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "terse/cpu/dispatch.hpp"
#include "terse/version.hpp"

#include "evaluation.hpp"
#include "evaluation/calibration.hpp"
#include "evaluation/device.hpp"
#include "evaluation/layer_schedule.hpp"
#include "evaluation/passkey.hpp"
#include "evaluation/texts.hpp"
#include "evaluation/window.hpp"
#include "model/gguf.hpp"
#include "model/tokenizer.hpp"
#include "report/csv.hpp"
#include "report/format.hpp"
#include "report/input_error.hpp"
#include "report/json.hpp"
#include "report/output_file.hpp"
#include "report/program.hpp"
#include "report/sha256.hpp"
#include "report/svg_plot.hpp"
#include "report/table.hpp"
#include "settings.hpp"

namespace terse::examples {
namespace {

/// The name of a schedule's row.
std::string schedule_name(const std::string& path) {
  return std::filesystem::path(path).stem().string();
}

RunInfo describe_run(const Settings& settings) {
  RunInfo info;
  info.program = "evaluate_policies";
  info.model_path = file_name(settings.model_path);
  info.version = TERSE_VERSION_STRING;
  info.compiler = compiler_name();
  info.instruction_set = cpu::kernels().name;
  info.threads = settings.threads;
  const bool on_device = settings.processor == Processor::cuda;
  info.options = {{"device", on_device ? device_name() : "cpu"},
                  {"tail", settings.chunk_tail ? "chunk-128" : "own"},
                  {"passkeys", std::to_string(settings.passkeys)},
                  {"passkey_tokens", std::to_string(settings.passkey_tokens)}};
  if (!settings.calibration_file.empty()) {
    info.options.insert(info.options.end(),
                        {{"calibration_file", file_name(settings.calibration_file)},
                         {"calibration_sha256", sha256_of_file(settings.calibration_file)}});
  }
  std::string schedules;
  for (const std::string& path : settings.schedule_paths) {
    schedules.append(schedules.empty() ? "" : ",").append(sha256_of_file(path));
  }
  if (!schedules.empty()) info.options.emplace_back("schedule_sha256", schedules);
  return info;
}

using Window = std::vector<std::int32_t>;

/// The windows of every text, which `info` then describes.
std::vector<Window> read_windows(const Settings& settings, const Tokenizer& tokenizer,
                                 RunInfo* info) {
  std::vector<Window> windows;
  const std::int64_t length = settings.window_tokens;
  const auto [scored_begin, scored_end] = Evaluation::scored(settings.window_tokens);
  for (const std::string& path : settings.text_paths) {
    TextPart text = read_text(tokenizer, path, settings.skip_chars, 0,
                              (settings.window_numbers.back() + 1) * length);
    text.info.token_ranges.clear();
    for (const int number : settings.window_numbers) {
      const std::int64_t at = number * length;
      windows.emplace_back(text.tokens.begin() + at, text.tokens.begin() + at + length);
      text.info.token_ranges.push_back({at, at + length, at + scored_begin, at + scored_end});
    }
    info->texts.push_back(std::move(text.info));
  }
  return windows;
}

std::vector<PasskeyCase> read_passkeys(const Settings& settings, const Tokenizer& tokenizer,
                                       RunInfo* info) {
  if (settings.passkeys == 0) return {};
  TextPart haystack = read_text(tokenizer, settings.haystack_path, Settings::haystack_skip_chars, 0,
                                settings.passkey_tokens);
  info->haystack = std::move(haystack.info);
  return make_passkeys(tokenizer, haystack.tokens, settings.passkey_tokens, settings.passkeys);
}

/// Of a text that is scored too, the tokens behind its windows: for factors and calibrations.
std::vector<std::int32_t> read_calibration(const Settings& settings, const Tokenizer& tokenizer,
                                           RunInfo* info) {
  const std::string sha256 = sha256_of_file(settings.calibration_path);
  const bool is_scored = std::any_of(info->texts.begin(), info->texts.end(),
                                     [&](const TextInfo& text) { return text.sha256 == sha256; });
  const std::int64_t first =
      is_scored ? std::int64_t{settings.window_numbers.back() + 1} * settings.window_tokens : 0;
  TextPart text = read_text(tokenizer, settings.calibration_path, settings.skip_chars, first,
                            settings.calibration_tokens);
  info->calibration = std::move(text.info);
  return text.tokens;
}

/// Tokenisers that join digits, such as that of Llama 3, have no passkeys: an error if the user
/// asked for some, a note otherwise.
void leave_out_passkeys_of_joined_digits(const Tokenizer& tokenizer, Settings* settings) {
  if (settings->passkeys == 0 || keeps_digits_apart(tokenizer)) return;
  const std::string reason =
      "the model's tokeniser joins digits, and a passkey needs a token for each";
  if (settings->passkeys_given) {
    throw InputError("--passkeys " + std::to_string(settings->passkeys) + ": " + reason +
                     "; use --passkeys 0");
  }
  std::cerr << "evaluate_policies: passkeys are left out: " << reason << '\n';
  settings->passkeys = 0;
}

std::vector<PolicyRow> scheduled_rows(const Settings& settings,
                                      const std::vector<LayerSchedule>& schedules) {
  std::vector<PolicyRow> rows;
  std::set<std::string> names(settings.policies.begin(), settings.policies.end());
  for (std::size_t i = 0; i < schedules.size(); ++i) {
    const std::string name = schedule_name(settings.schedule_paths[i]);
    if (!names.insert(name).second) {
      throw InputError("--schedule " + settings.schedule_paths[i] + ": another row is called '" +
                       name + "' too; rename the file");
    }
    rows.push_back(scheduled_row(name, schedules[i]));
  }
  return rows;
}

void run(Settings settings) {
  std::vector<std::string> inputs = settings.text_paths;
  inputs.insert(inputs.end(), {settings.model_path, settings.haystack_path,
                               settings.calibration_path, settings.calibration_file});
  inputs.insert(inputs.end(), settings.schedule_paths.begin(), settings.schedule_paths.end());
  check_output_files(
      inputs, {settings.csv_path, settings.markdown_path, settings.svg_path, settings.json_path});
  const GgufFile file = GgufFile::open(settings.model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  leave_out_passkeys_of_joined_digits(tokenizer, &settings);
  std::vector<const PolicyRow*> policies;
  for (const std::string& name : settings.policies) policies.push_back(&policy_row(name));
  std::vector<LayerSchedule> schedules;
  for (const std::string& path : settings.schedule_paths) schedules.push_back(load_schedule(path));
  const std::vector<PolicyRow> scheduled = scheduled_rows(settings, schedules);
  for (const PolicyRow& row : scheduled) policies.push_back(&row);
  const bool needs_text = std::any_of(policies.begin(), policies.end(), [&](const PolicyRow* row) {
    return row->factors.needed() || (row->calibrated && settings.calibration_file.empty());
  });

  // Every text is read before the first product: a short one is noticed at once.
  RunInfo info = describe_run(settings);
  std::vector<Window> windows = read_windows(settings, tokenizer, &info);
  std::vector<PasskeyCase> passkeys = read_passkeys(settings, tokenizer, &info);
  std::vector<std::int32_t> calibration;
  if (needs_text) calibration = read_calibration(settings, tokenizer, &info);

  ThreadPool alone(1);  // policies run side by side, each on one thread
  LlamaModel model = LlamaModel::load(file, alone);
  std::unique_ptr<MatrixProducts> products;
  if (settings.processor == Processor::cuda) {
    check_on_device(model.config());
    products = make_device_products();
    model.use_products(*products);
  }
  info.model_name = model.config().name;
  info.model_sha256 = sha256_of_file(settings.model_path);
  check_context("--tokens", settings.window_tokens, model.config());
  for (const LayerSchedule& schedule : schedules) check_layers(schedule, model.config());
  if (settings.passkeys > 0) {
    check_context("--passkey-tokens", settings.passkey_tokens, model.config());
  }
  Evaluation evaluation(settings, model, policies);
  for (Window& window : windows) evaluation.add_window(std::move(window));
  evaluation.set_passkeys(std::move(passkeys));
  evaluation.set_calibration_text(std::move(calibration));
  if (!settings.calibration_file.empty()) {
    evaluation.set_calibration(load_calibration(settings.calibration_file, model,
                                                fingerprint_of_model(settings.model_path)));
  }
  const std::vector<ResultRow> rows = evaluation.run();
  info.reference_perplexity = evaluation.reference_perplexity();

  const Table table = result_table(rows);
  std::cout << table.plain_text()
            << "\nperplexity of the reference (plain 16-bit keys and values): "
            << format_fixed(info.reference_perplexity, 2) << '\n';
  write_output(settings.csv_path, results_csv(rows));
  write_output(settings.markdown_path, table.markdown());
  write_output(settings.svg_path, quality_plot_svg(info, rows));
  write_output(settings.json_path, results_json(info, rows));
}

}  // namespace
}  // namespace terse::examples

int main(int argc, char** argv) {
  return terse::examples::run_program("evaluate_policies", [&] {
    terse::examples::Settings settings;
    if (terse::examples::read_settings(argc, argv, &settings)) {
      terse::examples::run(std::move(settings));
    }
  });
}
