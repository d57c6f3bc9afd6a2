/// check_model: is a model safe under a policy? A check of a few hundred tokens, as an engine would
/// make it when it loads a model, and beside it what longer texts measure.

#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "terse/check/check_core.hpp"

#include "evaluation/calibration.hpp"
#include "evaluation/job_queue.hpp"
#include "evaluation/model_check.hpp"
#include "evaluation/policies.hpp"
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
#include "report/statistics.hpp"
#include "report/table.hpp"

namespace terse::examples {
namespace {

struct Settings {
  std::string model_path, text_path, calibration_path, markdown_path;
  std::vector<std::string> held_out_paths, policies;
  std::int64_t skip_chars = 20000;
  int tokens = CheckSpec{}.tokens;
  int key_bias = 0;
  int windows = 1;
  int threads = 0;
  bool all_layers = false;
};

/// Tokens of a held-out window, of which the second half is scored, as in evaluate_policies.
constexpr int window_tokens = 2048;

/// Without a calibration `all` means the others.
void leave_out_calibrated(Settings* s) {
  if (!s->calibration_path.empty()) return;
  std::string left_out;
  std::erase_if(s->policies, [&](const std::string& name) {
    if (!policy_row(name).calibrated) return false;
    left_out += (left_out.empty() ? "" : ", ") + name;
    return true;
  });
  std::cerr << "check_model: without --calibration these are left out: " << left_out << '\n';
}

bool read_settings(int argc, const char* const* argv, Settings* s) {
  std::vector<std::string> choices;
  for (const PolicyRow& row : policy_rows()) {
    if (row.make_check) choices.push_back(row.name);
  }
  choices.emplace_back("all");
  OptionParser parser("check_model",
                      "Checks with a few hundred tokens whether a language model is safe under "
                      "policies that store codes, and names the layers at risk.");
  parser.section("Input")
      .text("model", "FILE", &s->model_path,
            "GGUF file of a Llama model (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q6_K)")
      .text("text", "FILE", &s->text_path, "text that the check runs over")
      .integer("skip-chars", "N", &s->skip_chars, {0, 1'000'000'000},
               "bytes of each text to skip first")
      .integer("tokens", "N", &s->tokens, {128, 1 << 16},
               "tokens of the check; the second half is scored")
      .text("calibration", "FILE", &s->calibration_path,
            "calibration of the model for the shaped-* policies, written by calibrate")
      .integer("key-bias", "N", &s->key_bias, {-100000, 100000},
               "add this to a channel of all keys, one that RoPE hardly turns: the model answers "
               "nearly as before, and codes that share a scale over channels suffer");
  parser.section("What to run")
      .choices("policy", "NAME", choices, &s->policies,
               "policies to check; `all` means every one of these (what evicts, projects or reads "
               "planes "
               "to a depth has no check; without --calibration the calibrated ones are left out)")
      .texts("held-out", "FILE", &s->held_out_paths,
             "also measure the divergence on windows of 2048 tokens of this text; may be given "
             "several times")
      .integer("windows", "N", &s->windows, {1, 1000}, "windows of each held-out text")
      .integer("threads", "N", &s->threads, {0, 1024}, "threads; 0: one for each processor");
  parser.section("Output")
      .flag("layers", &s->all_layers, "print every layer, not only those at risk")
      .text("markdown", "FILE", &s->markdown_path, "write the table as Markdown");
  parser.example("check_model --model m.gguf --text novel.txt --policy int8,kivi-2",
                 "what two policies would cost this model");
  if (!parser.parse(argc, argv)) {
    std::cout << parser.help();
    return false;
  }
  if (s->model_path.empty()) throw InputError("--model is missing; see --help");
  if (s->text_path.empty()) throw InputError("--text is missing; see --help");
  if (s->policies.empty()) throw InputError("--policy is missing; see --help");
  if (std::find(s->policies.begin(), s->policies.end(), "all") != s->policies.end()) {
    choices.pop_back();
    s->policies = choices;
    leave_out_calibrated(s);
  }
  if (s->threads == 0) {
    s->threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return true;
}

struct Result {
  ExpectedKl expected;
  double squared_errors = 0;  ///< sum over layers of output_error^2
  double measured = std::nan("");
  std::vector<LayerReport> layers;
  bool is_safe = false;
};

/// Divergences of one policy on held-out windows.
class HeldOut {
 public:
  HeldOut(const LlamaModel& model, const Settings& settings, const Tokenizer& tokenizer)
      : model_(model),
        windows_(read_windows(tokenizer, settings.held_out_paths, settings.skip_chars,
                              settings.windows, window_tokens)) {}

  [[nodiscard]] std::size_t windows() const { return windows_.size(); }

  void start(std::size_t window) {
    tokens_ = windows_[window];
    reference_ = exact_logits(model_, tokens_, first);
  }
  [[nodiscard]] double mean_kl(const PolicyRow& row, SessionConfig config) const {
    config.layers = 1;
    config.max_tokens = window_tokens;
    config.max_step_tokens = 128;
    const auto session = row.make_session(config);
    const int vocabulary = model_.config().vocabulary;
    const float* reference = reference_.data();
    double sum = 0;
    for_each_logits(model_, run_window(model_, config, *session, tokens_), first, window_tokens,
                    [&](int, const float* logits) {
                      sum += score_token(reference, logits, vocabulary, 0).kl;
                      reference += vocabulary;
                    });
    return sum / (window_tokens - first);
  }

 private:
  static constexpr int first = window_tokens / 2;

  const LlamaModel& model_;
  std::vector<std::vector<std::int32_t>> windows_;
  std::vector<std::int32_t> tokens_;
  std::vector<float> reference_;
};

Table table_of(const std::vector<const PolicyRow*>& policies, const std::vector<Result>& results,
               bool measured) {
  Table table;
  table.add_column("policy", Alignment::left);
  table.add_column("expected KL", Alignment::right);
  table.add_column("its error", Alignment::right);
  if (measured) {
    table.add_column("measured KL", Alignment::right);
    table.add_column("expected / measured", Alignment::right);
  }
  table.add_column("squared errors", Alignment::right);
  table.add_column("layers at risk", Alignment::right);
  table.add_column("safe", Alignment::left);
  for (std::size_t p = 0; p < policies.size(); ++p) {
    const Result& r = results[p];
    int at_risk = 0;
    for (const LayerReport& layer : r.layers) at_risk += layer.risk == LayerRisk::none ? 0 : 1;
    std::vector<std::string> cells{policies[p]->name, format_significant(r.expected.mean, 3),
                                   format_significant(r.expected.standard_error, 2)};
    if (measured) {
      cells.push_back(format_significant(r.measured, 3));
      cells.push_back(format_fixed(r.expected.mean / r.measured, 2));
    }
    cells.push_back(format_significant(r.squared_errors, 3));
    cells.push_back(std::to_string(at_risk));
    cells.emplace_back(r.is_safe ? "yes" : "no");
    table.add_row(std::move(cells));
  }
  return table;
}

void print_layers(const PolicyRow& policy, const Result& result, bool all) {
  bool any = false;
  for (std::size_t layer = 0; layer < result.layers.size(); ++layer) {
    const LayerReport& report = result.layers[layer];
    if (!all && report.risk == LayerRisk::none) continue;
    if (!any) std::cout << '\n' << policy.name << '\n';
    any = true;
    char text[200];
    describe(static_cast<int>(layer), report, text);
    std::cout << "  " << text << "; " << format_fixed(100 * report.share, 1)
              << " % of the squared errors\n";
  }
}

void run(const Settings& settings) {
  std::vector<std::string> inputs = settings.held_out_paths;
  inputs.insert(inputs.end(), {settings.model_path, settings.text_path, settings.calibration_path});
  check_output_files(inputs, {settings.markdown_path});
  const std::vector<const PolicyRow*> policies =
      policy_rows_of(settings.policies, settings.calibration_path);
  const GgufFile file = GgufFile::open(settings.model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  const TextPart text =
      read_text(tokenizer, settings.text_path, settings.skip_chars, 0, settings.tokens);
  ThreadPool alone(1);  // policies run side by side, each on one thread
  LlamaModel model = LlamaModel::load(file, alone);
  check_context("--tokens", settings.tokens, model.config());
  if (!settings.held_out_paths.empty()) {
    check_context("--held-out: a window of", window_tokens, model.config());
  }
  HeldOut held_out(model, settings, tokenizer);
  const std::optional<Calibration> calibration =
      load_if_named(settings.calibration_path, model, settings.model_path);
  if (settings.key_bias != 0) add_key_bias(model, static_cast<float>(settings.key_bias));
  const auto config_of = [&](const PolicyRow& row) {
    SessionConfig config{.model = &model, .max_tokens = settings.tokens};
    if (row.calibrated) config.calibration = &*calibration;
    return config;
  };

  ProgressBar progress(static_cast<double>(policies.size()) *
                       (settings.tokens + static_cast<double>(held_out.windows()) * window_tokens));
  std::vector<Result> results(policies.size());
  const auto for_each_policy = [&](const std::function<void(std::size_t)>& f) {
    std::vector<std::function<void()>> jobs;
    for (std::size_t p = 0; p < policies.size(); ++p) jobs.emplace_back([&f, p] { f(p); });
    run_jobs(settings.threads, jobs);
  };
  {
    const std::vector<float> exact = exact_logits(model, text.tokens, settings.tokens / 2);
    for_each_policy([&](std::size_t p) {
      progress.set_label(policies[p]->name);
      const auto check = policies[p]->make_check(config_of(*policies[p]));
      const CheckReport report = run_check(model, *check, text.tokens, exact);
      Result& own = results[p];
      own.expected = report.expected_kl;
      own.is_safe = report.is_safe;
      own.layers.assign(report.layers.begin(), report.layers.end());
      for (const LayerReport& layer : report.layers) {
        own.squared_errors += layer.loss.output_error * layer.loss.output_error;
      }
      progress.advance(settings.tokens);
    });
  }
  for (std::size_t w = 0; w < held_out.windows(); ++w) {
    held_out.start(w);
    for_each_policy([&](std::size_t p) {
      progress.set_label(policies[p]->name + ", held out");
      const double kl = held_out.mean_kl(*policies[p], config_of(*policies[p]));
      results[p].measured = (w == 0 ? 0 : results[p].measured) + kl;
      progress.advance(window_tokens);
    });
  }
  for (Result& r : results) r.measured /= static_cast<double>(held_out.windows());
  progress.finish();

  const Table table = table_of(policies, results, held_out.windows() > 0);
  std::cout << table.plain_text();
  for (std::size_t p = 0; p < policies.size(); ++p) {
    print_layers(*policies[p], results[p], settings.all_layers);
  }
  write_output(settings.markdown_path, table.markdown());
}

}  // namespace
}  // namespace terse::examples

int main(int argc, char** argv) {
  return terse::examples::run_program("check_model", [&] {
    terse::examples::Settings settings;
    if (terse::examples::read_settings(argc, argv, &settings)) terse::examples::run(settings);
  });
}
