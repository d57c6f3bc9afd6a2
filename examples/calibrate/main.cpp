/// calibrate: what a model's keys, values and queries are like, as a file for the shaped-*
/// policies.

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "evaluation/calibration.hpp"
#include "evaluation/texts.hpp"
#include "model/gguf.hpp"
#include "model/tokenizer.hpp"
#include "report/format.hpp"
#include "report/input_error.hpp"
#include "report/options.hpp"
#include "report/output_file.hpp"
#include "report/program.hpp"
#include "report/progress.hpp"

namespace terse::examples {
namespace {

struct Settings {
  std::string model_path, text_path, output_path;
  std::int64_t skip_chars = 20000;
  int tokens = 8192;
  int tail_tokens = ShapedSpec{}.tail.min_tokens;
  int threads = 0;
};

bool read_settings(int argc, const char* const* argv, Settings* s) {
  OptionParser parser("calibrate",
                      "Runs a language model over a text and writes the moments of its keys, "
                      "values and queries as a calibration for terse's shaped codecs.");
  parser.section("Input")
      .text("model", "FILE", &s->model_path,
            "GGUF file of a Llama model (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q6_K)")
      .text("text", "FILE", &s->text_path, "text to run it over; any prose in its language")
      .integer("skip-chars", "N", &s->skip_chars, {0, 1'000'000'000},
               "bytes of the text to skip first")
      .integer("tokens", "N", &s->tokens, {256, 1 << 20}, "tokens of the text to use")
      .integer("tail", "N", &s->tail_tokens, {0, 1 << 20},
               "newest tokens that caches keep exact: what queries see of them counts nothing. The "
               "default is that of the shaped-* policies; 0: for caches without a tail")
      .integer("threads", "N", &s->threads, {0, 1024}, "threads; 0: one for each processor");
  parser.section("Output").text("output", "FILE", &s->output_path, "the calibration");
  parser.example("calibrate --model m.gguf --text novel.txt --output m.calibration",
                 "a file for evaluate_policies --calibration");
  if (!parser.parse(argc, argv)) {
    std::cout << parser.help();
    return false;
  }
  if (s->model_path.empty()) throw InputError("--model is missing; see --help");
  if (s->text_path.empty()) throw InputError("--text is missing; see --help");
  if (s->output_path.empty()) throw InputError("--output is missing; see --help");
  if (s->threads == 0) {
    s->threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return true;
}

void run(const Settings& settings) {
  check_output_files({settings.model_path, settings.text_path}, {settings.output_path});
  const GgufFile file = GgufFile::open(settings.model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  const TextPart text =
      read_text(tokenizer, settings.text_path, settings.skip_chars, 0, settings.tokens);
  ThreadPool alone(1);  // windows run side by side, each on one thread
  const LlamaModel model = LlamaModel::load(file, alone);
  ProgressBar progress(settings.tokens);
  progress.set_label("calibration");
  const Calibration calibration = calibrate(
      model, fingerprint_of_model(settings.model_path), text.tokens, settings.threads,
      [&](int tokens) { progress.advance(tokens); }, settings.tail_tokens);
  progress.finish();
  const std::string bytes = file_of(calibration);
  write_output(settings.output_path, bytes);
  std::cout << settings.output_path << ": " << format_grouped(static_cast<long long>(bytes.size()))
            << " bytes, " << model.config().name << " on " << format_grouped(settings.tokens)
            << " tokens of " << text.info.name << '\n';
}

}  // namespace
}  // namespace terse::examples

int main(int argc, char** argv) {
  return terse::examples::run_program("calibrate", [&] {
    terse::examples::Settings settings;
    if (terse::examples::read_settings(argc, argv, &settings)) terse::examples::run(settings);
  });
}
