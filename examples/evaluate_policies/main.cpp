/// evaluate_policies: what each cache policy costs and saves on a real model and real text.

#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <system_error>

#include "terse/cpu/dispatch.hpp"
#include "terse/version.hpp"

#include "evaluation.hpp"
#include "evaluation/passkey.hpp"
#include "model/gguf.hpp"
#include "model/mapped_file.hpp"
#include "model/matmul.hpp"
#include "model/tokenizer.hpp"
#include "report/csv.hpp"
#include "report/input_error.hpp"
#include "report/json.hpp"
#include "report/sha256.hpp"
#include "report/svg_plot.hpp"
#include "report/table.hpp"
#include "settings.hpp"

namespace terse::examples {
namespace {

/// Bytes of text that surely hold so many tokens.
constexpr std::int64_t bytes_per_token_limit = 24;

std::string read_text(const std::string& path, std::int64_t skip, std::int64_t limit) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (skip >= size) {
    throw InputError("the text '" + path + "' is too short: it has " + std::to_string(size) +
                     " bytes, and its first " + std::to_string(skip) + " are skipped");
  }
  const std::string text(reinterpret_cast<const char*>(bytes.data()) + skip,
                         static_cast<std::size_t>(std::min(limit, size - skip)));
  // Start at a character, not inside one.
  std::size_t start = 0;
  while (start < text.size() && (static_cast<unsigned char>(text[start]) & 0xc0u) == 0x80u) ++start;
  return text.substr(start);
}

std::vector<std::int32_t> read_tokens(const Tokenizer& tokenizer, const std::string& path,
                                      std::int64_t skip, std::int64_t count) {
  std::vector<std::int32_t> tokens =
      tokenizer.encode(read_text(path, skip, count * bytes_per_token_limit));
  if (static_cast<std::int64_t>(tokens.size()) < count) {
    throw InputError("the text '" + path + "' is too short: " + std::to_string(count) +
                     " tokens are needed after the first " + std::to_string(skip) + " bytes, " +
                     std::to_string(tokens.size()) + " are there");
  }
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

/// A run takes minutes: a file that cannot be written is noticed before.
void check_writable(const std::string& path) {
  if (path.empty()) return;
  std::error_code ignored;
  const bool exists = std::filesystem::exists(path, ignored);
  if (!std::ofstream(path, std::ios::binary | std::ios::app)) {
    throw InputError("cannot write '" + path + "'");
  }
  if (!exists) std::filesystem::remove(path, ignored);
}

void write_file(const std::string& path, const std::string& content) {
  if (path.empty()) return;
  std::ofstream out(path, std::ios::binary);
  out << content;
  out.flush();
  if (!out) throw InputError("cannot write '" + path + "'");
  std::cerr << "wrote " << path << '\n';
}

std::string file_name(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

void run(const Settings& settings) {
  for (const std::string* path :
       {&settings.csv_path, &settings.markdown_path, &settings.svg_path, &settings.json_path}) {
    check_writable(*path);
  }
  const GgufFile file = GgufFile::open(settings.model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  std::vector<const PolicyRow*> policies;
  for (const std::string& name : settings.policies) policies.push_back(&policy_row(name));

  RunInfo info;
  info.program = "evaluate_policies";
  info.model_path = file_name(settings.model_path);
  info.version = TERSE_VERSION_STRING;
  info.compiler = compiler_name();
  info.instruction_set = cpu::kernels().name;
  info.threads = settings.threads;
  info.options = {{"tail", settings.chunk_tail ? "chunk-128" : "own"},
                  {"passkeys", std::to_string(settings.passkeys)},
                  {"passkey_tokens", std::to_string(settings.passkey_tokens)}};

  // Every text is read before the first product: a short one is noticed at once.
  std::vector<std::vector<std::int32_t>> windows;
  for (const std::string& path : settings.text_paths) {
    const std::int64_t count = std::int64_t{settings.windows} * settings.window_tokens;
    const auto tokens = read_tokens(tokenizer, path, settings.skip_chars, count);
    TextInfo text;
    text.name = file_name(path);
    text.path = text.name;
    text.sha256 = sha256_of_file(path);
    text.skip_chars = settings.skip_chars;
    const auto [begin, end] = Evaluation::scored(settings.window_tokens);
    for (int w = 0; w < settings.windows; ++w) {
      const std::int64_t at = std::int64_t{w} * settings.window_tokens;
      windows.emplace_back(tokens.begin() + at, tokens.begin() + at + settings.window_tokens);
      text.token_ranges.push_back({at, at + settings.window_tokens, at + begin, at + end});
    }
    info.texts.push_back(std::move(text));
  }
  std::vector<PasskeyCase> passkeys;
  if (settings.passkeys > 0) {
    constexpr std::int64_t haystack_skip = 30000;
    const auto haystack =
        read_tokens(tokenizer, settings.haystack_path, haystack_skip, settings.passkey_tokens);
    passkeys = make_passkeys(tokenizer, haystack, settings.passkey_tokens, settings.passkeys);
  }

  ThreadPool alone(1);  // policies run side by side, each on one thread
  LlamaModel model = LlamaModel::load(file, alone);
  info.model_name = model.config().name;
  info.model_sha256 = sha256_of_file(settings.model_path);
  const auto check_context = [&](const char* option, int tokens) {
    if (tokens > model.config().context_tokens) {
      throw InputError(std::string(option) + " " + std::to_string(tokens) +
                       " exceeds the model's context of " +
                       std::to_string(model.config().context_tokens));
    }
  };
  check_context("--tokens", settings.window_tokens);
  if (settings.passkeys > 0) check_context("--passkey-tokens", settings.passkey_tokens);
  Evaluation evaluation(settings, model, policies);
  for (auto& window : windows) evaluation.add_window(std::move(window));
  evaluation.set_passkeys(std::move(passkeys));
  if (evaluation.needs_factors()) {
    evaluation.set_calibration(read_tokens(tokenizer, settings.calibration_path,
                                           settings.skip_chars, settings.calibration_tokens));
  }
  const std::vector<ResultRow> rows = evaluation.run();

  const Table table = result_table(rows);
  std::cout << table.plain_text();
  write_file(settings.csv_path, results_csv(rows));
  write_file(settings.markdown_path, table.markdown());
  write_file(settings.svg_path, quality_plot_svg(info, rows));
  write_file(settings.json_path, results_json(info, rows));
}

}  // namespace
}  // namespace terse::examples

int main(int argc, char** argv) {
  using namespace terse::examples;  // NOLINT: a program's main
  try {
    Settings settings;
    if (!read_settings(argc, argv, &settings)) return 0;
    run(settings);
    return 0;
  } catch (const InputError& error) {
    std::fprintf(stderr, "evaluate_policies: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "evaluate_policies: internal error: %s\n", error.what());
    return 1;
  }
}
