// SmolLM2-135M-Instruct on a short window of Persuasion.

#include <cstdlib>
#include <fstream>
#include <string>

#include "evaluation/policies.hpp"
#include "evaluation/window.hpp"
#include "model/tokenizer.hpp"
#include "report/statistics.hpp"
#include "support/catch.hpp"

using namespace terse::examples;

namespace {

const std::string no_model =
    "set TERSE_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf and TERSE_TEST_TEXT_DIR to the folder "
    "of persuasion.txt";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string text_from(const std::string& path, std::streamoff first, std::size_t bytes) {
  std::ifstream in(path, std::ios::binary);
  in.seekg(first);
  std::string text(bytes, '\0');
  REQUIRE(in.read(text.data(), static_cast<std::streamsize>(bytes)));
  return text;
}

constexpr int tokens_of_window = 512;

}  // namespace

TEST_CASE("identity is the reference, and KIVI at 4 bits is near it") {
  const std::string model_path = variable("TERSE_TEST_MODEL");
  const std::string texts = variable("TERSE_TEST_TEXT_DIR");
  if (model_path.empty() || texts.empty()) TERSE_SKIP_UNLESS_CI(no_model);

  ThreadPool pool(1);
  const GgufFile file = GgufFile::open(model_path);
  const Tokenizer tokenizer = Tokenizer::load(file);
  const LlamaModel model = LlamaModel::load(file, pool);
  const LlamaConfig& shape = model.config();
  std::vector<std::int32_t> tokens =
      tokenizer.encode(text_from(texts + "/persuasion.txt", 20000, 6000));
  REQUIRE(tokens.size() >= tokens_of_window);
  tokens.resize(tokens_of_window);

  const int begin = tokens_of_window / 2, end = tokens_of_window - 1;
  const auto logits_of = [&](const std::vector<float>& x) {
    std::vector<float> logits;
    for_each_logits(model, x, begin, end, [&](int, const float* row) {
      logits.insert(logits.end(), row, row + shape.vocabulary);
    });
    return logits;
  };
  const std::vector<float> reference = logits_of(run_reference(model, tokens));
  const auto quality_of = [&](const char* policy, WindowMemory* memory) {
    const SessionConfig config{
        .model = &model, .max_tokens = tokens_of_window, .max_step_tokens = 128};
    const auto session = policy_row(policy).make_session(config);
    const auto logits = logits_of(run_window(model, config, *session, tokens, memory));
    std::vector<TokenScore> scores;
    for (int p = begin; p < end; ++p) {
      const auto at =
          static_cast<std::size_t>(p - begin) * static_cast<std::size_t>(shape.vocabulary);
      scores.push_back(score_token(reference.data() + at, logits.data() + at, shape.vocabulary,
                                   tokens[static_cast<std::size_t>(p) + 1]));
    }
    return summarise({scores}, 64);
  };

  WindowMemory memory;
  const QualitySummary identity = quality_of("identity", &memory);
  CHECK(identity.scored_positions == end - begin);
  CHECK(identity.mean_kl < 1e-6);
  CHECK(identity.top1_agreement > 0.99);
  CHECK(memory.bits_per_element == 16.0);
  // 30 layers, 3 heads of 64 channels, keys and values, 16 bits: 23,040 bytes, and tables.
  CHECK(memory.bytes_per_token >= 23040.0);
  CHECK(memory.bytes_per_token < 23040.0 * 1.15);
  // Less context than the 29.63 of a whole window of 2048 tokens.
  CHECK(identity.perplexity_reference > 20);
  CHECK(identity.perplexity_reference < 60);
  CHECK(identity.perplexity == Approx(identity.perplexity_reference).epsilon(1e-3));

  const QualitySummary kivi = quality_of("kivi-4", &memory);
  CHECK(memory.bits_per_element == 5.0);
  CHECK(kivi.mean_kl > 0.001);
  CHECK(kivi.mean_kl < 0.01);
  CHECK(kivi.median_kl < kivi.mean_kl * 1.5);
  CHECK(kivi.top1_agreement > 0.9);
  CHECK(kivi.perplexity == Approx(kivi.perplexity_reference).epsilon(0.05));
  CHECK(kivi.perplexity_reference == identity.perplexity_reference);
}
