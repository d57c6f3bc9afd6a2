/// schedule_bits: which layers of a model deserve more bits? Measures what each layer's keys and
/// values cost under each policy, and gives the bits of a budget to those that gain most.

#include <algorithm>
#include <charconv>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "evaluation/calibration.hpp"
#include "evaluation/job_queue.hpp"
#include "evaluation/layer_schedule.hpp"
#include "evaluation/policies.hpp"
#include "evaluation/schedule_search.hpp"
#include "evaluation/texts.hpp"
#include "evaluation/window.hpp"
#include "model/gguf.hpp"
#include "model/tokenizer.hpp"
#include "report/format.hpp"
#include "report/input_error.hpp"
#include "report/options.hpp"
#include "report/output_file.hpp"
#include "report/program.hpp"
#include "report/progress.hpp"
#include "report/table.hpp"

namespace terse::examples {
namespace {

struct Settings {
  std::string model_path, calibration_path, output_prefix, markdown_path;
  std::vector<std::string> text_paths, budget_texts;
  std::vector<std::string> policies{"shaped-2k-1v", "shaped-2", "shaped-3k-2v", "shaped-3",
                                    "shaped-4"};
  std::vector<double> budgets;
  std::int64_t skip_chars = 20000;
  int tokens = 768;
  int windows = 1;
  int threads = 0;

  [[nodiscard]] std::string output_path(std::size_t budget) const {
    return output_prefix + "-" + budget_texts[budget] + ".schedule";
  }
};

double budget_of(const std::string& text) {
  double bits = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bits);
  if (error != std::errc{} || end != text.data() + text.size() || !(bits > 0 && bits <= 16)) {
    throw InputError("--budget '" + text + "' is no number of bits above 0, up to 16");
  }
  return bits;
}

bool read_settings(int argc, const char* const* argv, Settings* s) {
  std::vector<std::string> choices;
  for (const PolicyRow& row : policy_rows()) {
    if (row.make_check) choices.push_back(row.name);
  }
  OptionParser parser("schedule_bits",
                      "Measures what each layer of a language model loses under each policy, and "
                      "finds the schedule of policies that spends a budget of bits best.");
  parser.section("Input")
      .text("model", "FILE", &s->model_path,
            "GGUF file of a Llama model (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q6_K)")
      .texts("text", "FILE", &s->text_paths,
             "text that the losses are measured on; may be given several times")
      .integer("skip-chars", "N", &s->skip_chars, {0, 1'000'000'000},
               "bytes of each text to skip first")
      .integer("tokens", "N", &s->tokens, {128, 1 << 16},
               "tokens of a window; the second half is scored")
      .integer("windows", "N", &s->windows, {1, 1000}, "windows of each text")
      .text("calibration", "FILE", &s->calibration_path,
            "calibration of the model for the shaped-* policies, written by calibrate");
  parser.section("What to run")
      .choices("policy", "NAME", choices, &s->policies, "policies that layers may have")
      .texts("budget", "BITS", &s->budget_texts,
             "bits per element, on average over the layers; may be given several times")
      .integer("threads", "N", &s->threads, {0, 1024}, "threads; 0: one for each processor");
  parser.section("Output")
      .text("output", "PREFIX", &s->output_prefix,
            "write each schedule as PREFIX-BITS.schedule, for evaluate_policies --schedule")
      .text("markdown", "FILE", &s->markdown_path, "write the table of losses as Markdown");
  parser.example(
      "schedule_bits --model m.gguf --text novel.txt --calibration m.calibration "
      "--budget 2.25 --output m",
      "writes m-2.25.schedule");
  if (!parser.parse(argc, argv)) {
    std::cout << parser.help();
    return false;
  }
  if (s->model_path.empty()) throw InputError("--model is missing; see --help");
  if (s->text_paths.empty()) throw InputError("--text is missing; see --help");
  if (s->budget_texts.empty()) throw InputError("--budget is missing; see --help");
  if (s->output_prefix.empty()) throw InputError("--output is missing; see --help");
  for (const std::string& text : s->budget_texts) s->budgets.push_back(budget_of(text));
  if (s->threads == 0) {
    s->threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return true;
}

/// `[layer, candidate]`: the mean over all windows.
std::vector<double> measure(const Settings& settings, const LlamaModel& model,
                            const std::vector<const PolicyRow*>& policies,
                            const std::vector<std::vector<std::int32_t>>& windows,
                            const std::function<SessionConfig(const PolicyRow&)>& config_of) {
  const auto layers = static_cast<std::size_t>(model.config().layers);
  std::vector<double> losses(layers * policies.size());
  ProgressBar progress(static_cast<double>(windows.size() * losses.size()));
  for (const auto& window : windows) {
    progress.set_label("reference");
    const LayerLosses of_window(model, window);
    std::vector<std::function<void()>> jobs;
    for (std::size_t i = 0; i < losses.size(); ++i) {
      jobs.emplace_back([&, i] {
        const PolicyRow& row = *policies[i % policies.size()];
        const std::size_t layer = i / policies.size();
        progress.set_label("layer " + std::to_string(layer) + ", " + row.name);
        losses[i] += of_window.mean_kl(row, config_of(row), static_cast<int>(layer)) /
                     static_cast<double>(windows.size());
        progress.advance(1);
      });
    }
    run_jobs(settings.threads, jobs);
  }
  progress.finish();
  return losses;
}

Table table_of(const std::vector<const PolicyRow*>& policies, const std::vector<double>& losses) {
  Table table;
  table.add_column("layer", Alignment::right);
  for (const PolicyRow* row : policies) table.add_column(row->name, Alignment::right);
  std::vector<double> sums(policies.size());
  const auto add = [&](std::string name, const double* values) {
    std::vector<std::string> cells{std::move(name)};
    for (std::size_t c = 0; c < policies.size(); ++c) {
      cells.push_back(format_significant(values[c], 3));
    }
    table.add_row(std::move(cells));
  };
  for (std::size_t at = 0; at < losses.size(); at += policies.size()) {
    for (std::size_t c = 0; c < policies.size(); ++c) sums[c] += losses[at + c];
    add(std::to_string(at / policies.size()), losses.data() + at);
  }
  add("sum", sums.data());
  return table;
}

void run(const Settings& settings) {
  std::vector<std::string> inputs = settings.text_paths, outputs{settings.markdown_path};
  inputs.insert(inputs.end(), {settings.model_path, settings.calibration_path});
  for (std::size_t b = 0; b < settings.budgets.size(); ++b) {
    outputs.push_back(settings.output_path(b));
  }
  check_output_files(inputs, outputs);
  const std::vector<const PolicyRow*> policies =
      policy_rows_of(settings.policies, settings.calibration_path);
  const GgufFile file = GgufFile::open(settings.model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  const std::vector<std::vector<std::int32_t>> windows = read_windows(
      tokenizer, settings.text_paths, settings.skip_chars, settings.windows, settings.tokens);
  ThreadPool alone(1);  // measurements run side by side, each on one thread
  const LlamaModel model = LlamaModel::load(file, alone);
  check_context("--tokens", settings.tokens, model.config());
  const std::optional<Calibration> calibration =
      load_if_named(settings.calibration_path, model, settings.model_path);
  const auto config_of = [&](const PolicyRow& row) {
    SessionConfig config{.model = &model, .max_tokens = settings.tokens, .max_step_tokens = 1};
    if (row.calibrated) config.calibration = &*calibration;
    return config;
  };
  std::vector<double> bits;
  bits.reserve(policies.size());
  for (const PolicyRow* row : policies) {
    bits.push_back(row->make_session(config_of(*row))->memory().bits_per_element);
  }
  // A budget that is too small is noticed before anything is measured.
  for (const double budget : settings.budgets) (void)search_schedule(bits, bits, budget);

  const std::vector<double> losses = measure(settings, model, policies, windows, config_of);
  const Table table = table_of(policies, losses);
  std::cout << table.plain_text();
  write_output(settings.markdown_path, table.markdown());
  for (std::size_t b = 0; b < settings.budgets.size(); ++b) {
    const std::vector<int> found = search_schedule(bits, losses, settings.budgets[b]);
    LayerSchedule schedule;
    double mean_bits = 0, sum = 0;
    for (std::size_t layer = 0; layer < found.size(); ++layer) {
      const auto c = static_cast<std::size_t>(found[layer]);
      schedule.push_back(policies[c]);
      mean_bits += bits[c] / static_cast<double>(found.size());
      sum += losses[layer * policies.size() + c];
    }
    const std::string summary = format_fixed(mean_bits, 3) +
                                " bits per element on average; sum of the layers' losses: KL " +
                                format_significant(sum, 3);
    std::cout << settings.output_path(b) << ": " << summary << '\n';
    write_output(settings.output_path(b), file_of(schedule, summary));
  }
}

}  // namespace
}  // namespace terse::examples

int main(int argc, char** argv) {
  return terse::examples::run_program("schedule_bits", [&] {
    terse::examples::Settings settings;
    if (terse::examples::read_settings(argc, argv, &settings)) terse::examples::run(settings);
  });
}
