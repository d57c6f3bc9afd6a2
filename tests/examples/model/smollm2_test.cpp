// SmolLM2-135M-Instruct against llama.cpp; values and script in tests/data/llama_reference.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.hpp"
#include "matmul.hpp"
#include "reference_attention.hpp"
#include "support/catch.hpp"
#include "tokenizer.hpp"

using namespace terse::examples;

namespace {

const std::string no_model = "set TERSE_TEST_MODEL to the path of SmolLM2-135M-Instruct.Q4_1.gguf";

/// Empty where the variable is unset.
std::string model_path() {
  const char* path = std::getenv("TERSE_TEST_MODEL");
  return path != nullptr ? path : "";
}

std::vector<std::istringstream> reference_lines(const std::string& name) {
  std::ifstream file(TERSE_TEST_DATA_DIR "/llama_reference/" + name);
  std::vector<std::istringstream> lines;
  for (std::string line; std::getline(file, line);) {
    lines.emplace_back(line);
  }
  return lines;
}

template <typename T>
std::vector<T> rest_of(std::istringstream& line) {
  std::vector<T> values;
  for (T value; line >> value;) {
    values.push_back(value);
  }
  return values;
}

std::string from_hexadecimal(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

}  // namespace

TEST_CASE("SmolLM2 texts have the tokens of llama.cpp and come back") {
  const std::string path = model_path();
  if (path.empty()) {
    TERSE_SKIP_UNLESS_CI(no_model);
  }
  const Tokenizer tokenizer = Tokenizer::load(GgufFile::open(path));
  CHECK(tokenizer.vocabulary() == 49152);
  CHECK(tokenizer.is_end_of_generation(tokenizer.find_token("<|im_end|>").value()));
  int texts = 0;
  for (std::istringstream& line : reference_lines("tokens.txt")) {
    std::string mode;
    std::string digits;
    line >> mode >> digits;
    const auto expected = rest_of<std::int32_t>(line);
    const std::string text = from_hexadecimal(digits);
    INFO(mode << ": " << text);
    const auto tokens =
        tokenizer.encode(text, mode == "special" ? SpecialTokens::parsed : SpecialTokens::as_text);
    CHECK(tokens == expected);
    CHECK(tokenizer.decode(tokens, true) == text);
    StreamDecoder decoder(tokenizer);
    std::string streamed;
    for (const std::int32_t token : tokenizer.encode(text)) {
      streamed += decoder.push(token);
    }
    CHECK(streamed + decoder.finish() == text);
    ++texts;
  }
  CHECK(texts >= 70);
}

TEST_CASE("SmolLM2 logits agree with llama.cpp") {
  const std::string path = model_path();
  if (path.empty()) {
    TERSE_SKIP_UNLESS_CI(no_model);
  }
  ThreadPool pool(2);
  const LlamaModel model = LlamaModel::load(path, pool);
  const LlamaConfig& config = model.config();
  auto lines = reference_lines("logits.txt");
  REQUIRE(lines.size() == 5);
  std::string word;
  lines[0] >> word;
  const auto tokens = rest_of<std::int32_t>(lines[0]);
  lines[1] >> word;
  const auto ids = rest_of<std::size_t>(lines[1]);
  REQUIRE(ids.size() == 200);

  std::vector<float> x = model.embed(tokens);
  for (int layer = 0; layer < config.layers; ++layer) {
    const Qkv qkv = model.qkv(layer, model.attention_inputs(layer, x), 0);
    const AttentionShape shape = {config.query_heads, config.kv_heads, config.head_dim};
    model.finish_layer(layer, x, reference_attention(pool, shape, qkv.q, qkv.k, qkv.v));
  }
  const std::vector<float> logits = model.logits(x);

  double squares = 0;
  double worst = 0;
  for (std::size_t i = 2; i < lines.size(); ++i) {
    std::size_t position = 0;
    std::ptrdiff_t largest = 0;
    double normaliser = 0;
    lines[i] >> word >> position >> largest >> normaliser;
    const auto expected = rest_of<double>(lines[i]);
    REQUIRE(expected.size() == ids.size());
    REQUIRE(position < tokens.size());
    const float* row = logits.data() + position * static_cast<std::size_t>(config.vocabulary);
    const double own_normaliser = log_sum_exp(row, config.vocabulary);
    INFO("position " << position);
    CHECK(std::max_element(row, row + config.vocabulary) - row == largest);
    CHECK(own_normaliser == Approx(normaliser).margin(0.01));
    for (std::size_t j = 0; j < ids.size(); ++j) {
      // Log-probabilities: a common offset of all logits means nothing.
      const double error = (double(row[ids[j]]) - own_normaliser) - (expected[j] - normaliser);
      squares += error * error;
      worst = std::max(worst, std::abs(error));
    }
  }
  // Both sides compute in fp32; keys and values are rounded to fp16 here only.
  const double root_mean_square = std::sqrt(squares / (3.0 * double(ids.size())));
  INFO("root mean square " << root_mean_square << ", largest " << worst);
  CHECK(root_mean_square < 0.004);
  CHECK(worst < 0.015);
}
