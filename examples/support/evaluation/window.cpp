#include "evaluation/window.hpp"

#include <algorithm>

#include "model/reference_attention.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace {

/// Rows of logits computed at a time: they are as wide as the vocabulary.
constexpr int logit_rows = 32;

/// What a layer adds to the residual stream with an exact 16-bit cache.
void finish_exactly(const LlamaModel& model, int layer, const Qkv& qkv, std::span<float> x) {
  const LlamaConfig& config = model.config();
  model.finish_layer(
      layer, x,
      reference_attention(model.pool(), {config.query_heads, config.kv_heads, config.head_dim},
                          qkv.q, qkv.k, qkv.v));
}

}  // namespace

void check_context(const std::string& option, int tokens, const LlamaConfig& model) {
  if (tokens > model.context_tokens) {
    throw InputError(option + " " + std::to_string(tokens) + " exceeds the model's context of " +
                     std::to_string(model.context_tokens));
  }
}

std::vector<float> run_reference(const LlamaModel& model, std::span<const std::int32_t> tokens,
                                 const std::function<void(const LayerTrace&)>& trace) {
  const LlamaConfig& config = model.config();
  std::vector<float> x = model.embed(tokens);
  if (!trace) {
    run_reference_layers(model, x, 0, config.layers);
    return x;
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    const std::vector<float> normed = model.attention_inputs(layer, x);
    Qkv qkv = model.qkv(layer, normed, 0, Rope::none);
    trace({layer, normed, qkv.q, qkv.k, qkv.v});
    model.apply_rope(qkv.q, config.query_heads, 0);
    finish_exactly(model, layer, qkv, x);
  }
  return x;
}

void run_reference_layers(const LlamaModel& model, std::span<float> x, int begin, int end) {
  for (int layer = begin; layer < end; ++layer) {
    finish_exactly(model, layer, model.qkv(layer, model.attention_inputs(layer, x), 0), x);
  }
}

void run_window_layer(const LlamaModel& model, const SessionConfig& config, Session& session,
                      int layer, std::span<float> x) {
  const LlamaConfig& shape = model.config();
  const auto count = static_cast<int>(x.size()) / shape.hidden;
  const auto query_width =
      static_cast<std::size_t>(shape.query_heads) * static_cast<std::size_t>(shape.head_dim);
  std::vector<float> attention(static_cast<std::size_t>(count) * query_width);
  const std::vector<float> normed = model.attention_inputs(layer, x);
  const Qkv qkv = session_inputs(model, config, session, layer, normed, 0);
  const std::size_t key_width = qkv.k.size() / static_cast<std::size_t>(count);
  const std::size_t value_width = qkv.v.size() / static_cast<std::size_t>(count);
  for (int t = 0; t < count;) {
    // Steps end at multiples of their size, so that schedules in tokens are met exactly.
    const int step = std::min(session.natural_step_tokens(), count - t);
    const auto at = static_cast<std::size_t>(t);
    session.begin_step(step);
    session.attend_layer(0, qkv.q.data() + at * query_width, qkv.k.data() + at * key_width,
                         qkv.v.data() + at * value_width, attention.data() + at * query_width);
    session.commit_step();
    t += step;
  }
  model.finish_layer(layer, x, attention);
}

std::vector<float> run_window(const LlamaModel& model, const SessionConfig& config,
                              Session& session, std::span<const std::int32_t> tokens,
                              WindowMemory* memory) {
  std::vector<float> x = model.embed(tokens);
  double page_bytes = 0;
  for (int layer = 0; layer < model.config().layers; ++layer) {
    session.restart(layer);
    run_window_layer(model, config, session, layer, x);
    page_bytes += session.memory().page_bytes;
  }
  if (memory != nullptr) {
    memory->bits_per_element = session.memory().bits_per_element;
    memory->share_read = session.memory().share_read;
    memory->bytes_per_token =
        (page_bytes + session.generation_overhead_bytes()) / static_cast<double>(tokens.size());
  }
  return x;
}

void for_each_logits(const LlamaModel& model, std::span<const float> residual, int begin, int end,
                     const std::function<void(int, const float*)>& f) {
  const auto hidden = static_cast<std::size_t>(model.config().hidden);
  const auto vocabulary = static_cast<std::size_t>(model.config().vocabulary);
  for (int p = begin; p < end; p += logit_rows) {
    const int rows = std::min(logit_rows, end - p);
    const std::vector<float> logits = model.logits(residual.subspan(
        static_cast<std::size_t>(p) * hidden, static_cast<std::size_t>(rows) * hidden));
    for (int i = 0; i < rows; ++i) {
      f(p + i, logits.data() + static_cast<std::size_t>(i) * vocabulary);
    }
  }
}

}  // namespace terse::examples
