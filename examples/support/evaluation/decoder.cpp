#include "evaluation/decoder.hpp"

#include <algorithm>
#include <chrono>
#include <random>

namespace terse::examples {

std::vector<float> decode(const LlamaModel& model, const SessionConfig& config, Session& session,
                          std::span<const std::int32_t> tokens, int position) {
  const LlamaConfig& shape = model.config();
  const int total = static_cast<int>(tokens.size());
  std::vector<float> x;
  for (int t = 0; t < total;) {
    const int count = std::min(session.natural_step_tokens(), total - t);
    x = model.embed(tokens.subspan(static_cast<std::size_t>(t), static_cast<std::size_t>(count)));
    std::vector<float> attention(
        static_cast<std::size_t>(count * shape.query_heads * shape.head_dim));
    session.begin_step(count);
    for (int layer = 0; layer < shape.layers; ++layer) {
      const std::vector<float> normed = model.attention_inputs(layer, x);
      const Qkv qkv = session_inputs(model, config, session, layer, normed, position + t);
      session.attend_layer(layer, qkv.q.data(), qkv.k.data(), qkv.v.data(), attention.data());
      model.finish_layer(layer, x, attention);
    }
    session.commit_step();
    t += count;
  }
  return model.logits(std::span<const float>(x).last(static_cast<std::size_t>(shape.hidden)));
}

double decode_speed(const LlamaModel& model, const SessionConfig& config, Session& session,
                    int length_tokens, int steps) {
  const LlamaConfig& shape = model.config();
  std::minstd_rand generator(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  const int step = std::min(config.max_step_tokens, 64);
  steps = std::min(steps, length_tokens / 2);
  // Wide enough for every layer's vectors or latents of a step: ranks do not exceed the heads.
  std::vector<float> keys(static_cast<std::size_t>(step * shape.kv_heads * shape.head_dim));
  std::vector<float> values(keys.size());
  for (float& x : keys) x = uniform(generator);
  for (float& x : values) x = uniform(generator);
  for (int t = 0; t < length_tokens - steps; t += step) {
    session.begin_step(std::min(step, length_tokens - steps - t));
    for (int layer = 0; layer < shape.layers; ++layer) {
      session.append_layer(layer, keys.data(), values.data());
    }
    session.commit_step();
  }
  std::vector<double> seconds;
  for (int i = 0; i < steps; ++i) {
    const std::int32_t token = (1000 + i) % shape.vocabulary;
    const auto begin = std::chrono::steady_clock::now();
    (void)decode(model, config, session, {&token, 1}, length_tokens - steps + i);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + steps / 2, seconds.end());
  return 1.0 / seconds[static_cast<std::size_t>(steps / 2)];
}

}  // namespace terse::examples
