#include "settings.hpp"

#include <algorithm>
#include <iostream>
#include <thread>

#include "evaluation/policies.hpp"
#include "report/input_error.hpp"
#include "report/options.hpp"

namespace terse::examples {

bool read_settings(int argc, const char* const* argv, Settings* s) {
  constexpr const char* default_prompt = "The old house at the end of the lane";
  std::vector<std::string> names;
  for (const PolicyRow& row : policy_rows()) names.push_back(row.name);
  OptionParser parser("generate",
                      "Continues a prompt under two cache policies, side by side, and marks where "
                      "they part.");
  parser.section("Input")
      .text("model", "FILE", &s->model_path,
            "GGUF file of a Llama model (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q6_K)")
      .text("prompt", "TEXT", &s->prompt,
            std::string("text to continue (default: \"") + default_prompt +
                "\", or nothing after a context)")
      .text("context", "FILE", &s->context_path,
            "text put before the prompt, so that the caches hold more")
      .flag("chat", &s->chat,
            "ask the prompt as a user's message in the model's chat template "
            "(<|im_start|> ... <|im_end|>)");
  parser.section("What to run")
      .choices("policy", "NAME", names, &s->policies, "the two policies to compare")
      .integer("tokens", "N", &s->tokens, {1, 1 << 20},
               "most tokens to write; a column ends early where the model ends its text")
      .real("temperature", "T", &s->temperature, {0, 100},
            "0: always the most probable token; otherwise tokens are drawn, with the same random "
            "numbers for both policies")
      .integer("seed", "S", &s->seed, {0, (std::int64_t{1} << 62)}, "seed of those numbers")
      .text("calibration-text", "FILE", &s->calibration_path,
            "text that low-rank factors and calibrations are computed from; policies with latents "
            "and the shaped-* ones need it")
      .integer("calibration-tokens", "N", &s->calibration_tokens, {256, 1 << 20},
               "tokens of that text to use")
      .integer("threads", "N", &s->threads, {0, 1024}, "threads; 0: one for each processor");
  parser.example("generate --model m.gguf --context novel.txt --policy identity,streaming-25",
                 "goes on with a novel");
  parser.example("generate --model m.gguf --chat --prompt \"Name three rivers.\"",
                 "asks a question");
  if (!parser.parse(argc, argv)) {
    std::cout << parser.help();
    return false;
  }
  if (s->model_path.empty()) throw InputError("--model is missing; see --help");
  if (s->policies.size() != 2) {
    throw InputError("--policy must name two different policies, such as --policy identity,kivi-2");
  }
  if (s->chat && s->prompt.empty()) throw InputError("--chat needs a --prompt");
  if (s->prompt.empty() && s->context_path.empty()) s->prompt = default_prompt;
  if (s->threads == 0) {
    s->threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return true;
}

}  // namespace terse::examples
