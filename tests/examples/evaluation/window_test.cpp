// Windows of a small model, and what the tail rule chunk-128 means.

#include "evaluation/window.hpp"

#include "evaluation/policies.hpp"
#include "small_model.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::random_tokens;
using terse_test::relative_l2;
using terse_test::small_model_file;

namespace {

/// Keys of zero give every token that is seen the same weight, so that outputs are means of values.
class UniformAttention {
 public:
  UniformAttention(const LlamaModel& model, const char* policy, int tokens)
      : model_(model),
        config_{.model = &model, .max_tokens = tokens, .max_step_tokens = 128, .chunk_tail = true},
        tokens_(tokens),
        session_(policy_row(policy).make_session(config_)) {}

  /// Values [token, KV head, channel] of `value(token, channel)`; outputs of query head 0, channel
  /// `channel`, by token.
  template <class Value>
  std::vector<float> run(const Value& value, int channel) {
    const LlamaConfig& shape = model_.config();
    const int kv_width = shape.kv_heads * shape.head_dim;
    const int query_width = shape.query_heads * shape.head_dim;
    std::vector<float> values, outputs;
    for (int t = 0; t < tokens_; ++t) {
      for (int c = 0; c < kv_width; ++c) values.push_back(value(t, c % shape.head_dim));
    }
    const std::vector<float> keys(values.size());
    for (int t = 0; t < tokens_;) {
      const int step = std::min(session_->natural_step_tokens(), tokens_ - t);
      const std::vector<float> queries(
          static_cast<std::size_t>(step) * static_cast<std::size_t>(query_width), 1.0f);
      std::vector<float> output(queries.size());
      session_->begin_step(step);
      session_->attend_layer(0, queries.data(), keys.data() + t * kv_width,
                             values.data() + t * kv_width, output.data());
      session_->commit_step();
      for (int i = 0; i < step; ++i) {
        outputs.push_back(
            output[static_cast<std::size_t>(i) * static_cast<std::size_t>(query_width) +
                   static_cast<std::size_t>(channel)]);
      }
      t += step;
    }
    return outputs;
  }

 private:
  const LlamaModel& model_;
  SessionConfig config_;
  int tokens_;
  std::unique_ptr<Session> session_;
};

double sum_of(int begin, int end) { return 0.5 * (begin + end - 1.0) * (end - begin); }

}  // namespace

TEST_CASE("the identity row gives what the reference run gives") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  const auto tokens = random_tokens(270, model.config().vocabulary, 3);
  const std::vector<float> reference = run_reference(model, tokens);
  const SessionConfig config{.model = &model, .max_tokens = 270, .max_step_tokens = 128};
  const auto session = policy_row("identity").make_session(config);
  WindowMemory memory;
  const std::vector<float> x = run_window(model, config, *session, tokens, &memory);
  REQUIRE(x.size() == reference.size());
  CHECK(relative_l2(x, reference) < 1e-4);
  CHECK(memory.bits_per_element == 16.0);
  // Two layers of two heads of 64 channels, keys and values, and some tables.
  CHECK(memory.bytes_per_token > 2 * 2 * 64 * 2 * 2);
  CHECK(memory.bytes_per_token < 2 * 2 * 64 * 2 * 2 * 1.6);
}

TEST_CASE("traces are of the input and the queries before RoPE") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  const auto tokens = random_tokens(7, model.config().vocabulary, 4);
  const std::vector<float> normed = model.attention_inputs(0, model.embed(tokens));
  const Qkv qkv = model.qkv(0, normed, 0, Rope::none);
  int layers = 0;
  const std::vector<float> traced = run_reference(model, tokens, [&](const LayerTrace& trace) {
    CHECK(trace.layer == layers++);
    if (trace.layer > 0) return;
    CHECK(std::vector<float>(trace.normed.begin(), trace.normed.end()) == normed);
    CHECK(std::vector<float>(trace.queries.begin(), trace.queries.end()) == qkv.q);
  });
  CHECK(layers == 2);
  CHECK(traced == run_reference(model, tokens));
}

TEST_CASE("logits come for the positions asked for, in order") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  const auto tokens = random_tokens(80, model.config().vocabulary, 5);
  const std::vector<float> x = run_reference(model, tokens);
  const std::vector<float> all = model.logits(x);
  const auto vocabulary = static_cast<std::size_t>(model.config().vocabulary);
  int next = 10;
  for_each_logits(model, x, 10, 79, [&](int position, const float* logits) {
    CHECK(position == next++);
    CHECK(logits[5] ==
          Approx(all[static_cast<std::size_t>(position) * vocabulary + 5]).margin(1e-5));
  });
  CHECK(next == 79);
}

TEST_CASE("chunk-128: a query reads its own chunk exactly and everything before it decoded") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  // Two bits over 0 ... 3 have the levels 0, 1, 2, 3: a value of 1.375 decodes to 1.
  const auto value = [](int, int c) { return c % 32 == 0 ? 0.0f : c % 32 == 1 ? 3.0f : 1.375f; };
  UniformAttention attention(model, "kivi-2", 400);
  const std::vector<float> outputs = attention.run(value, 2);
  for (int t = 0; t < 400; ++t) {
    const int exact = t % 128 + 1;
    INFO("token " << t);
    CHECK(outputs[static_cast<std::size_t>(t)] ==
          Approx((1.375 * exact + (t + 1 - exact)) / (t + 1)).margin(1e-4));
  }
}

TEST_CASE("chunk-128: exact sinks stay exact") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  const auto value = [](int, int c) { return c % 32 == 0 ? 0.0f : c % 32 == 1 ? 3.0f : 1.375f; };
  UniformAttention attention(model, "kivi-2-sinks", 300);
  const std::vector<float> outputs = attention.run(value, 2);
  for (const int t : {0, 127, 128, 200, 256, 299}) {
    const int exact = t % 128 + 1 + (t < 128 ? 0 : 4);
    INFO("token " << t);
    CHECK(outputs[static_cast<std::size_t>(t)] ==
          Approx((1.375 * exact + (t + 1 - exact)) / (t + 1)).margin(1e-4));
  }
}

TEST_CASE("chunk-128: per-token codecs decode everywhere") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  // FP8 has three bits of fraction: 1.0625 becomes 1.
  UniformAttention attention(model, "fp8", 140);
  for (const float output : attention.run([](int, int) { return 1.0625f; }, 2)) {
    CHECK(output == Approx(1.0).margin(1e-5));
  }
}

TEST_CASE("chunk-128: eviction follows each chunk and leaves the whole budget") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file(), pool);
  // The value of a token is its position; half of 512 tokens is the budget.
  const auto value = [](int t, int) { return static_cast<float>(t); };
  SECTION("sinks and a window") {
    UniformAttention attention(model, "window-50", 512);
    const std::vector<float> outputs = attention.run(value, 0);
    // At 384 tokens 0 ... 3 and the newest 252 stay.
    for (const int t : {0, 100, 255, 256, 383}) {
      CHECK(outputs[static_cast<std::size_t>(t)] == Approx(sum_of(0, t + 1) / (t + 1)));
    }
    for (const int t : {384, 400, 511}) {
      const double sum = sum_of(0, 4) + sum_of(132, t + 1);
      CHECK(outputs[static_cast<std::size_t>(t)] == Approx(sum / (4 + t + 1 - 132)));
    }
  }
  SECTION("heavy hitters by the sum: the oldest, seen by most queries, and the newest 64") {
    UniformAttention attention(model, "h2o-50", 512);
    const std::vector<float> outputs = attention.run(value, 0);
    CHECK(outputs[383] == Approx(sum_of(0, 384) / 384));
    for (const int t : {384, 400, 511}) {
      const double sum = sum_of(0, 192) + sum_of(320, t + 1);
      CHECK(outputs[static_cast<std::size_t>(t)] == Approx(sum / (192 + t + 1 - 320)));
    }
  }
}
