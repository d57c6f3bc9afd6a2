#include "evaluation/model_check.hpp"

#include "evaluation/window.hpp"

namespace terse::examples {

std::vector<float> exact_logits(const LlamaModel& model, std::span<const std::int32_t> tokens,
                                int first_scored) {
  std::vector<float> logits;
  for_each_logits(model, run_reference(model, tokens), first_scored,
                  static_cast<int>(tokens.size()), [&](int, const float* row) {
                    logits.insert(logits.end(), row, row + model.config().vocabulary);
                  });
  return logits;
}

// [second_pass]
CheckReport run_check(const LlamaModel& model, PolicyCheck& check,
                      std::span<const std::int32_t> tokens, std::span<const float> exact) {
  const LlamaConfig& config = model.config();
  std::vector<float> x = model.embed(tokens);
  for (int layer = 0; layer < config.layers; ++layer) {
    const Qkv qkv = model.qkv(layer, model.attention_inputs(layer, x), 0);
    std::vector<float> attention(qkv.q.size());
    check.attend_layer(layer, qkv.q.data(), qkv.k.data(), qkv.v.data(), attention.data());
    model.finish_layer(layer, x, attention);
  }
  const float* row = exact.data();
  for_each_logits(model, x, check.first_scored(), static_cast<int>(tokens.size()),
                  [&](int, const float* logits) {
                    check.add_logits(row, logits, 1, config.vocabulary);
                    row += config.vocabulary;
                  });
  return check.report();
}
// [second_pass]

void add_key_bias(LlamaModel& model, float bias) {
  const LlamaConfig& config = model.config();
  const auto head_dim = static_cast<std::size_t>(config.head_dim);
  std::vector<float> biases(static_cast<std::size_t>(config.kv_heads) * head_dim);
  for (std::size_t c = static_cast<std::size_t>(config.rope_dim) - 1; c < biases.size();
       c += head_dim) {
    biases[c] = bias;
  }
  for (int layer = 0; layer < config.layers; ++layer) model.set_key_bias(layer, biases);
}

}  // namespace terse::examples
