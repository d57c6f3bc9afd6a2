/// generate: a prompt continued under two cache policies, side by side.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <optional>

#include "columns.hpp"
#include "continuation.hpp"
#include "evaluation/calibration.hpp"
#include "evaluation/low_rank.hpp"
#include "evaluation/texts.hpp"
#include "model/gguf.hpp"
#include "model/mapped_file.hpp"
#include "report/format.hpp"
#include "report/input_error.hpp"
#include "report/program.hpp"
#include "report/progress.hpp"
#include "report/table.hpp"
#include "settings.hpp"

#if __has_include(<unistd.h>) && __has_include(<sys/ioctl.h>)
#include <unistd.h>

#include <sys/ioctl.h>
#define TERSE_GENERATE_TERMINAL 1
#endif

namespace terse::examples {
namespace {

/// Below this many tokens a cache is mostly its newest tokens and tables.
constexpr std::size_t short_cache_tokens = 1024;

bool stdout_is_terminal() {
#ifdef TERSE_GENERATE_TERMINAL
  return isatty(STDOUT_FILENO) == 1;
#else
  return false;
#endif
}

std::size_t stdout_columns() {
#ifdef TERSE_GENERATE_TERMINAL
  winsize size{};
  if (stdout_is_terminal() && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    return size.ws_col;
  }
#endif
  return 100;
}

bool wants_colour() {
  const char* kind = std::getenv("TERM");
  const char* no_colour = std::getenv("NO_COLOR");
  return stdout_is_terminal() && (no_colour == nullptr || *no_colour == '\0') &&
         !(kind != nullptr && std::string_view(kind) == "dumb");
}

std::string read_file(const std::string& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

/// The tokens to continue.
std::vector<std::int32_t> prompt_tokens(const Settings& settings, const GgufFile& file,
                                        const Tokenizer& tokenizer, const std::string& context) {
  const std::string text =
      context + (context.empty() || settings.prompt.empty() ? "" : "\n\n") + settings.prompt;
  if (!settings.chat) return tokenizer.encode(text);
  if (file.text("tokenizer.chat_template", "").find("<|im_start|>") == std::string::npos ||
      !tokenizer.find_token("<|im_start|>") || !tokenizer.find_token("<|im_end|>")) {
    throw InputError("--chat: the model has no chat template with <|im_start|> and <|im_end|>");
  }
  std::vector<std::int32_t> tokens;
  const auto append = [&](std::string_view part, SpecialTokens special) {
    const auto encoded = tokenizer.encode(part, special, AddBos::no);
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  };
  append("<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n",
         SpecialTokens::parsed);
  append(text, SpecialTokens::as_text);
  append("<|im_end|>\n<|im_start|>assistant\n", SpecialTokens::parsed);
  return tokens;
}

/// The text of a continuation with the mark before token `difference`.
std::string marked_text(const Tokenizer& tokenizer, const Continuation& continuation,
                        std::size_t difference) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  std::size_t mark = std::string::npos;
  for (std::size_t i = 0; i < continuation.tokens.size(); ++i) {
    if (i == difference) mark = text.size();
    text += decoder.push(continuation.tokens[i]);
  }
  text += decoder.finish();
  if (continuation.has_ended) text += " [end of text]";
  if (mark == std::string::npos) return printable(text);
  // The mark stands at the word, not at the space or line break before it.
  mark = std::min(text.find_first_not_of(" \n", mark), text.size());
  return printable(text.substr(0, mark)) + std::string(difference_mark) +
         printable(text.substr(mark));
}

void print_prompt(const Settings& settings, const std::string& context, std::size_t tokens,
                  std::size_t columns) {
  constexpr std::size_t shown_bytes = 400;
  std::string text =
      context + (context.empty() || settings.prompt.empty() ? "" : "\n\n") + settings.prompt;
  if (text.size() > shown_bytes) {
    const std::size_t cut = text.find_first_of(" \n", text.size() - shown_bytes);
    text = "..." + text.substr(std::min(cut, text.size() - shown_bytes / 2));
  }
  std::cout << "Prompt, " << format_grouped(static_cast<long long>(tokens)) << " tokens:\n";
  for (const std::string& line : wrap_columns(printable(text), columns - 2)) {
    std::cout << (line.empty() ? "" : "  ") << line << '\n';
  }
  std::cout << '\n';
}

void print_numbers(const std::vector<const PolicyRow*>& policies,
                   const std::vector<Continuation>& results, const Agreement& agreement,
                   std::size_t cached_tokens, std::size_t columns) {
  Table table;
  table.add_column("", Alignment::left);
  for (const PolicyRow* policy : policies) table.add_column(policy->name, Alignment::right);
  const auto bytes = [&](std::size_t i) {
    return format_grouped(std::llround(results[i].bytes_per_token));
  };
  table.add_row({"bytes per token", bytes(0), bytes(1)});
  table.add_row({"tokens per second", format_fixed(results[0].tokens_per_second, 1),
                 format_fixed(results[1].tokens_per_second, 1)});
  std::cout << '\n' << table.plain_text();
  std::cout << "\nequal tokens: " << agreement.equal << " of " << agreement.longer << " ("
            << format_fixed(100.0 * static_cast<double>(agreement.equal) /
                                static_cast<double>(agreement.longer),
                            0)
            << " %)";
  if (agreement.first_difference < agreement.longer) {
    std::cout << "; the first difference, marked " << difference_mark << ", is token "
              << agreement.first_difference + 1;
  }
  std::cout << '\n';
  if (cached_tokens < short_cache_tokens) {
    const std::string note =
        "The caches hold " + std::to_string(cached_tokens) +
        " tokens: so few that exact newest tokens, whole pages and tables weigh more than codes. "
        "A longer --context shows what a policy saves.";
    for (const std::string& line : wrap_columns(note, columns)) std::cout << line << '\n';
  }
}

void run(const Settings& settings) {
  const GgufFile file = GgufFile::open(settings.model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  std::vector<const PolicyRow*> policies;
  bool needs_factors = false, needs_calibration = false;
  for (const std::string& name : settings.policies) {
    policies.push_back(&policy_row(name));
    const PolicyRow& row = *policies.back();
    needs_factors = needs_factors || row.factors.needed();
    needs_calibration = needs_calibration || row.calibrated;
    if ((row.factors.needed() || row.calibrated) && settings.calibration_path.empty()) {
      throw InputError("policy '" + name + "' " +
                       (row.calibrated ? "is calibrated" : "stores latents") +
                       " and needs a --calibration-text");
    }
  }
  const std::string context =
      settings.context_path.empty() ? std::string() : read_file(settings.context_path);
  const std::vector<std::int32_t> prompt = prompt_tokens(settings, file, tokenizer, context);
  if (prompt.empty()) throw InputError("the prompt has no tokens");
  TextPart text;
  if (needs_factors || needs_calibration) {
    text = read_text(tokenizer, settings.calibration_path, 0, 0, settings.calibration_tokens);
  }

  ThreadPool pool(settings.threads);
  const LlamaModel model = LlamaModel::load(file, pool);
  const auto limit = static_cast<std::size_t>(model.config().context_tokens);
  if (prompt.size() + static_cast<std::size_t>(settings.tokens) > limit) {
    throw InputError("the prompt's " + std::to_string(prompt.size()) + " tokens and --tokens " +
                     std::to_string(settings.tokens) + " exceed the model's context of " +
                     std::to_string(limit));
  }
  // The first step of a policy reads the whole prompt.
  ProgressBar progress(2.0 * settings.tokens);
  std::vector<LayerMoments> moments;
  if (needs_factors) {
    progress.set_label("low-rank factors");
    moments = moments_of(model, text.tokens);
  }
  std::optional<Calibration> calibration;
  if (needs_calibration) {
    progress.set_label("calibration");
    calibration = calibrate(model, fingerprint_of_model(settings.model_path), text.tokens);
  }
  std::vector<Continuation> results;
  for (const PolicyRow* policy : policies) {
    progress.set_label(policy->name);
    std::vector<LayerFactors> factors;
    if (policy->factors.needed()) factors = factorise(model, moments, policy->factors);
    results.push_back(continue_text(model, tokenizer, *policy, &factors,
                                    policy->calibrated ? &*calibration : nullptr, prompt,
                                    settings.tokens, Sampler(settings.temperature, settings.seed),
                                    [&] { progress.advance(1); }));
  }
  progress.finish();

  const Agreement agreement = compare(results[0].tokens, results[1].tokens);
  const std::size_t columns = stdout_columns();
  print_prompt(settings, context, prompt.size(), columns);
  std::vector<std::string> titles, texts;
  for (std::size_t i = 0; i < 2; ++i) {
    titles.push_back(policies[i]->name + ": " + policies[i]->description);
    texts.push_back(marked_text(tokenizer, results[i], agreement.first_difference));
  }
  std::cout << side_by_side(titles, texts, columns, wants_colour());
  print_numbers(policies, results, agreement, prompt.size() + agreement.longer - 1, columns);
}

}  // namespace
}  // namespace terse::examples

int main(int argc, char** argv) {
  return terse::examples::run_program("generate", [&] {
    terse::examples::Settings settings;
    if (terse::examples::read_settings(argc, argv, &settings)) terse::examples::run(settings);
  });
}
