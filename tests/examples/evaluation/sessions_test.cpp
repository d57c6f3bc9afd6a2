// Sessions of every row of the table: steps of many tokens are the same as single ones, and one
// session of all layers is the same as one session after another.

#include <map>

#include "evaluation/decoder.hpp"
#include "evaluation/policies.hpp"
#include "evaluation/window.hpp"
#include "row_factors.hpp"
#include "small_model.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::random_tokens;
using terse_test::RandomValues;
using terse_test::relative_l2;
using terse_test::small_model_file;

namespace {

constexpr int steps_of_a_natural_session = 128;

struct Fixture {
  ThreadPool pool{1};
  LlamaModel model = LlamaModel::load(small_model_file(), pool);
  terse_test::RowFactors factors{model};
};

/// What a session did with a stretch of random vectors.
struct Trace {
  std::vector<float> output;
  std::map<int, double> page_bytes;  // by length, at the end of every step
  SessionMemory memory;
  double generation_overhead_bytes = 0;
};

Trace run_session(Fixture& f, const PolicyRow& row, int tokens, int max_step_tokens,
                  bool chunk_tail) {
  const LlamaConfig& shape = f.model.config();
  const SessionConfig config{.model = &f.model,
                             .max_tokens = tokens,
                             .max_step_tokens = max_step_tokens,
                             .chunk_tail = chunk_tail,
                             .factors = f.factors.of(row)};
  const auto session = row.make_session(config);
  const auto head_dim = static_cast<std::size_t>(shape.head_dim);
  auto key_width = static_cast<std::size_t>(shape.kv_heads) * head_dim;
  auto value_width = key_width;
  REQUIRE(session->projects() == row.factors.needed());
  if (session->projects()) {
    key_width = static_cast<std::size_t>(config.factors->front().key_rank);
    value_width = static_cast<std::size_t>(config.factors->front().value_rank);
  }
  const auto query_width = static_cast<std::size_t>(shape.query_heads) * head_dim;
  const auto n = static_cast<std::size_t>(tokens);
  RandomValues random(23);
  const auto queries = random.vector(n * query_width, 2.0f);
  const auto keys = random.vector(n * key_width), values = random.vector(n * value_width);
  Trace trace;
  trace.output.resize(n * query_width);
  for (int t = 0; t < tokens;) {
    const int step = std::min(session->natural_step_tokens(), tokens - t);
    const auto at = static_cast<std::size_t>(t);
    session->begin_step(step);
    session->attend_layer(0, queries.data() + at * query_width, keys.data() + at * key_width,
                          values.data() + at * value_width, trace.output.data() + at * query_width);
    session->commit_step();
    t += step;
    trace.page_bytes[t] = session->memory().page_bytes;
  }
  trace.memory = session->memory();
  trace.generation_overhead_bytes = session->generation_overhead_bytes();
  return trace;
}

}  // namespace

TEST_CASE("steps of many tokens seal and evict when single tokens do, in every row") {
  Fixture f;
  // Beyond two residuals of 128 and two evictions of the smallest budget, not a multiple of 64.
  constexpr int tokens = 331;
  for (const PolicyRow& row : policy_rows()) {
    INFO(row.name);
    const Trace natural = run_session(f, row, tokens, steps_of_a_natural_session, false);
    const Trace single = run_session(f, row, tokens, 1, false);
    REQUIRE(single.page_bytes.size() == std::size_t{tokens});
    CHECK(relative_l2(natural.output, single.output) < 1e-5);
    for (const auto& [length, bytes] : natural.page_bytes) {
      INFO("length " << length);
      CHECK(bytes == single.page_bytes.at(length));
    }
    CHECK(natural.memory.bits_per_element == single.memory.bits_per_element);
    CHECK(natural.generation_overhead_bytes == single.generation_overhead_bytes);
    if (row.family != Family::eviction) continue;
    // Names end with the per cent of tokens kept; blocks of 64 tokens are held at both ends of the
    // window and for the sinks.
    const double kept = std::stoi(row.name.substr(row.name.size() - 2)) / 100.0 * tokens;
    CHECK(single.page_bytes.at(tokens) <= 2 * 2 * 64 * 2 * (kept + 3 * 64));
  }
}

TEST_CASE("chunk-128 sessions do not depend on the step either") {
  Fixture f;
  constexpr int tokens = 300;
  for (const char* name : {"identity", "q4_0", "kivi-4", "kivi-2-sinks", "window-25"}) {
    const PolicyRow& row = policy_row(name);
    INFO(name);
    const Trace natural = run_session(f, row, tokens, 128, true);
    const Trace single = run_session(f, row, tokens, 1, true);
    CHECK(relative_l2(natural.output, single.output) < 1e-5);
  }
}

TEST_CASE("every row can be made at every length, under both rules of exact tokens") {
  Fixture f;
  for (const PolicyRow& row : policy_rows()) {
    for (const bool chunk_tail : {false, true}) {
      for (const int tokens : {64, 200, 1000}) {
        INFO(row.name << ", " << tokens << " tokens, chunk rule " << chunk_tail);
        const SessionConfig config{.model = &f.model,
                                   .max_tokens = tokens,
                                   .max_step_tokens = 64,
                                   .chunk_tail = chunk_tail,
                                   .factors = f.factors.of(row)};
        CHECK(row.make_session(config)->natural_step_tokens() > 0);
      }
    }
  }
}

TEST_CASE("one session of all layers gives what layer after layer gives") {
  Fixture f;
  const LlamaConfig& shape = f.model.config();
  const auto tokens = random_tokens(300, shape.vocabulary, 8);
  for (const char* name : {"identity", "int8", "int4-rotated", "kivi-4", "streaming-25", "h2o-50",
                           "kivi-2-x-streaming-50", "latents-k75-v75", "latents-x-int4-x-h2o-50"}) {
    const PolicyRow& row = policy_row(name);
    INFO(name);
    SessionConfig config{
        .model = &f.model, .max_tokens = 300, .max_step_tokens = 128, .factors = f.factors.of(row)};
    auto session = row.make_session(config);
    WindowMemory memory;
    const std::vector<float> x = run_window(f.model, config, *session, tokens, &memory);
    const std::vector<float> one_by_one =
        f.model.logits(std::span<const float>(x).last(static_cast<std::size_t>(shape.hidden)));

    config.layers = shape.layers;
    session = row.make_session(config);
    const std::vector<float> together = decode(f.model, config, *session, tokens, 0);
    // Products of other row counts differ in the last bits, which may move a code.
    CHECK(relative_l2(together, one_by_one) < 2e-3);
    CHECK(memory.bytes_per_token ==
          Approx((session->memory().page_bytes + session->generation_overhead_bytes()) / 300));
    CHECK(memory.bits_per_element == session->memory().bits_per_element);
  }
}

TEST_CASE("decode continues where it stopped, and restart forgets") {
  Fixture f;
  const LlamaConfig& shape = f.model.config();
  const auto tokens = random_tokens(40, shape.vocabulary, 9);
  const std::span<const std::int32_t> all(tokens);
  const PolicyRow& row = policy_row("int8");
  const SessionConfig config{
      .model = &f.model, .layers = shape.layers, .max_tokens = 40, .max_step_tokens = 40};
  const auto session = row.make_session(config);
  const std::vector<float> expected = decode(f.model, config, *session, all, 0);
  for (int round = 0; round < 2; ++round) {
    session->restart(0);
    static_cast<void>(decode(f.model, config, *session, all.first(25), 0));
    CHECK(relative_l2(decode(f.model, config, *session, all.subspan(25), 25), expected) < 2e-3);
  }
}

TEST_CASE("speed is measured on every kind of session") {
  Fixture f;
  for (const char* name : {"identity", "kivi-2", "h2o-50", "latents-x-int4-x-h2o-50"}) {
    const PolicyRow& row = policy_row(name);
    SessionConfig config{.model = &f.model,
                         .layers = f.model.config().layers,
                         .max_tokens = 160,
                         .max_step_tokens = 128,
                         .factors = f.factors.of(row)};
    const auto session = row.make_session(config);
    CHECK(decode_speed(f.model, config, *session, 160, 3) > 0);
    session->restart(0);
    // More steps than the cache has room for.
    CHECK(decode_speed(f.model, config, *session, 20, 1000) > 0);
  }
}
