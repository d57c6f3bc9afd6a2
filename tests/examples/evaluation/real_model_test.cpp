// SmolLM2-135M-Instruct on windows of Persuasion.

#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "evaluation/model_check.hpp"
#include "evaluation/policies.hpp"
#include "evaluation/window.hpp"
#include "model/tokenizer.hpp"
#include "report/statistics.hpp"
#include "support/catch.hpp"

using namespace terse;
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

/// The model, a window that begins at character 20000 of Persuasion, and its reference logits.
class Window {
 public:
  explicit Window(int tokens) : tokens_count_(tokens) {
    const Tokenizer tokenizer = Tokenizer::load(file_);
    // A token of prose is four to five bytes.
    tokens_ = tokenizer.encode(text_from(variable("TERSE_TEST_TEXT_DIR") + "/persuasion.txt", 20000,
                                         8 * static_cast<std::size_t>(tokens)));
    REQUIRE(tokens_.size() >= static_cast<std::size_t>(tokens));
    tokens_.resize(static_cast<std::size_t>(tokens));
    reference_ = logits_of(run_reference(model_, tokens_));
  }

  [[nodiscard]] int scored_positions() const { return end() - begin(); }

  [[nodiscard]] QualitySummary quality_of(const char* policy, bool chunk_tail = false,
                                          WindowMemory* memory = nullptr) const {
    const SessionConfig config{.model = &model_,
                               .max_tokens = tokens_count_,
                               .max_step_tokens = 128,
                               .chunk_tail = chunk_tail};
    const auto session = policy_row(policy).make_session(config);
    const auto vocabulary = static_cast<std::size_t>(model_.config().vocabulary);
    std::vector<TokenScore> scores;
    for_each_logits(model_, run_window(model_, config, *session, tokens_, memory), begin(), end(),
                    [&](int position, const float* logits) {
                      const auto row = static_cast<std::size_t>(position - begin());
                      scores.push_back(score_token(
                          reference_.data() + row * vocabulary, logits, model_.config().vocabulary,
                          tokens_[static_cast<std::size_t>(position) + 1]));
                    });
    return summarise({scores}, 64);
  }

 private:
  [[nodiscard]] int begin() const { return tokens_count_ / 2; }
  [[nodiscard]] int end() const { return tokens_count_ - 1; }
  [[nodiscard]] std::vector<float> logits_of(const std::vector<float>& residual) const {
    std::vector<float> logits;
    for_each_logits(model_, residual, begin(), end(), [&](int, const float* row) {
      logits.insert(logits.end(), row, row + model_.config().vocabulary);
    });
    return logits;
  }

  int tokens_count_;
  ThreadPool pool_{1};
  GgufFile file_ = GgufFile::open(variable("TERSE_TEST_MODEL"));
  LlamaModel model_ = LlamaModel::load(file_, pool_);
  std::vector<std::int32_t> tokens_;
  std::vector<float> reference_;
};

/// The model and the beginning of Emma, with or without a bias of the keys.
class CheckedModel {
 public:
  struct Report {
    ExpectedKl expected_kl;
    std::vector<LayerReport> layers;
    int layers_at_risk;
    bool is_safe;
  };

  explicit CheckedModel(int tokens, float key_bias = 0) : tokens_count_(tokens) {
    const GgufFile file = GgufFile::open(variable("TERSE_TEST_MODEL"));
    model_.emplace(LlamaModel::load(file, pool_));
    if (key_bias != 0) add_key_bias(*model_, key_bias);
    tokens_ = Tokenizer::load(file).encode(text_from(variable("TERSE_TEST_TEXT_DIR") + "/emma.txt",
                                                     20000, 8 * static_cast<std::size_t>(tokens)));
    REQUIRE(tokens_.size() >= static_cast<std::size_t>(tokens));
    tokens_.resize(static_cast<std::size_t>(tokens));
    exact_ = exact_logits(*model_, tokens_, tokens / 2);
  }

  [[nodiscard]] Report report_of(const char* policy) const {
    const auto check =
        policy_row(policy).make_check({.model = &*model_, .max_tokens = tokens_count_});
    const CheckReport report = run_check(*model_, *check, tokens_, exact_);
    return {report.expected_kl,
            {report.layers.begin(), report.layers.end()},
            report.layers_at_risk,
            report.is_safe};
  }

 private:
  int tokens_count_;
  ThreadPool pool_{1};
  std::optional<LlamaModel> model_;
  std::vector<std::int32_t> tokens_;
  std::vector<float> exact_;
};

bool has_model() {
  return !variable("TERSE_TEST_MODEL").empty() && !variable("TERSE_TEST_TEXT_DIR").empty();
}

}  // namespace

TEST_CASE("identity is the reference, and KIVI at 4 bits is near it") {
  if (!has_model()) TERSE_SKIP_UNLESS_CI(no_model);
  const Window window(512);
  WindowMemory memory;
  const QualitySummary identity = window.quality_of("identity", false, &memory);
  CHECK(identity.scored_positions == window.scored_positions());
  CHECK(identity.mean_kl < 1e-6);
  CHECK(identity.top1_agreement > 0.99);
  CHECK(memory.bits_per_element == 16.0);
  // 30 layers, 3 heads of 64 channels, keys and values, 16 bits: 23,040 bytes, and tables.
  CHECK(memory.bytes_per_token >= 23040.0);
  CHECK(memory.bytes_per_token < 23040.0 * 1.15);
  CHECK(identity.perplexity == Approx(identity.perplexity_reference).epsilon(1e-3));

  const QualitySummary kivi = window.quality_of("kivi-4", false, &memory);
  CHECK(memory.bits_per_element == 5.0);
  CHECK(kivi.median_kl < kivi.mean_kl * 1.5);
  CHECK(kivi.top1_agreement > 0.9);
  CHECK(kivi.perplexity == Approx(kivi.perplexity_reference).epsilon(0.05));
  CHECK(kivi.perplexity_reference == identity.perplexity_reference);
}

TEST_CASE("a window of 2048 tokens has the numbers of an independent simulation") {
  if (!has_model()) TERSE_SKIP_UNLESS_CI(no_model);
  // A numpy program that shares no code with terse (docs/quality.md): perplexity with 16-bit keys
  // and values, and mean divergences with every query's own chunk of 128 tokens exact.
  const Window window(2048);
  const QualitySummary kivi4 = window.quality_of("kivi-4");
  CHECK(kivi4.scored_positions == 1023);
  CHECK(kivi4.perplexity_reference == Approx(29.63).epsilon(0.001));
  CHECK(kivi4.mean_kl == Approx(0.0033).epsilon(0.15));
  CHECK(window.quality_of("kivi-2").mean_kl == Approx(0.174).epsilon(0.15));
  CHECK(window.quality_of("h2o-average-50", true).mean_kl == Approx(0.0073).epsilon(0.25));
}

TEST_CASE("a check of a few hundred tokens foretells the divergence on another text") {
  if (!has_model()) TERSE_SKIP_UNLESS_CI(no_model);
  // That of the simulation, on Persuasion; the check reads Emma.
  const double ratio = CheckedModel(768).report_of("kivi-2").expected_kl.mean / 0.174;
  CHECK(ratio > 0.5);
  CHECK(ratio < 2.0);
}

TEST_CASE("a check flags a large key bias under codes that suffer from it") {
  if (!has_model()) TERSE_SKIP_UNLESS_CI(no_model);
  CHECK(CheckedModel(256).report_of("int8").is_safe);
  const CheckedModel biased(256, 1000.0f);
  const CheckedModel::Report int8 = biased.report_of("int8");
  CHECK_FALSE(int8.is_safe);
  CHECK(int8.layers_at_risk >= 25);
  for (const LayerReport& layer : int8.layers) {
    CHECK((layer.risk == LayerRisk::none || layer.risk == LayerRisk::key_peak));
    CHECK(layer.loss.peak.channel == 63);  // the last that RoPE turns
  }
  // A zero point per channel takes the bias off.
  const CheckedModel::Report kivi = biased.report_of("kivi-4");
  CHECK(kivi.is_safe);
  CHECK(kivi.layers_at_risk == 0);
}
