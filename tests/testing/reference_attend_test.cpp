// The oracle itself, against attention over tensors that never were in a cache.
#include "terse/testing/reference_attend.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/cache_fixture.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int query_heads = 4, kv_heads = 2, head_dim = 16, tokens = 150, rows = 3;

/// Keys and values `[token, kv_head, channel]` and queries `[row, query_head, channel]` of the last
/// `rows` positions, keys and values as fp16 holds them.
struct Tensors {
  std::vector<float> keys, values, queries;
  explicit Tensors(std::uint64_t seed) {
    Random random(seed);
    keys = random.normals(tokens * kv_heads * head_dim);
    values = random.normals(tokens * kv_heads * head_dim);
    queries = random.normals(rows * query_heads * head_dim);
    for (float& v : keys) v = to_float(to_f16(v));
    for (float& v : values) v = to_float(to_f16(v));
  }
};

struct Expected64 {
  std::vector<float> output, lse_ln;
};

/// Plain softmax attention in double; `sees(query position, key position)` is the mask.
template <class Sees>
Expected64 plain_attention(const Tensors& t, const AttendParams& params, Sees&& sees) {
  const double scale =
      params.softmax_scale > 0 ? params.softmax_scale : 1.0 / std::sqrt(double{head_dim});
  Expected64 e{std::vector<float>(rows * query_heads * head_dim),
               std::vector<float>(rows * query_heads)};
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < query_heads; ++h) {
      const int kv = h / (query_heads / kv_heads);
      const auto q = static_cast<std::size_t>((r * query_heads + h) * head_dim);
      double sum = 0, out[head_dim] = {};
      if (params.sink_logits != nullptr) sum = std::exp(double{params.sink_logits[h]});
      for (int p = 0; p < tokens; ++p) {
        if (!sees(tokens - rows + r, p)) continue;
        const auto k = static_cast<std::size_t>((p * kv_heads + kv) * head_dim);
        double logit = 0;
        for (std::size_t c = 0; c < head_dim; ++c) {
          logit += double{t.queries[q + c]} * t.keys[k + c] * scale;
        }
        if (params.logit_soft_cap > 0) {
          logit = params.logit_soft_cap * std::tanh(logit / params.logit_soft_cap);
        }
        const double weight = std::exp(logit);
        sum += weight;
        for (std::size_t c = 0; c < head_dim; ++c) out[c] += weight * t.values[k + c];
      }
      for (std::size_t c = 0; c < head_dim; ++c) {
        e.output[q + c] = sum > 0 ? static_cast<float>(out[c] / sum) : 0.0f;
      }
      e.lse_ln[static_cast<std::size_t>(r * query_heads + h)] = static_cast<float>(std::log(sum));
    }
  }
  return e;
}

using Fixture = CacheFixture<PagedLayout<>, Identity>;

Fixture filled(const Tensors& t, SequenceId* sequence) {
  Fixture f({.num_query_heads = query_heads,
             .num_kv_heads = kv_heads,
             .head_dim = head_dim,
             .max_tokens = 256,
             .max_step_tokens = tokens});
  *sequence = *f.cache.create_sequence();
  const StepPart part{*sequence, tokens};
  REQUIRE(f.cache.begin_step({&part, 1}).ok());
  REQUIRE(f.cache
              .append(0, {HeadRows::dense(t.keys.data(), Scalar::f32, kv_heads, head_dim),
                          HeadRows::dense(t.values.data(), Scalar::f32, kv_heads, head_dim)})
              .ok());
  REQUIRE(f.cache.commit_step().ok());
  return f;
}

template <class Sees>
void check(const AttendParams& params, Sees&& sees) {
  const Tensors t(1);
  SequenceId sequence;
  Fixture f = filled(t, &sequence);
  const StepPart part{sequence, rows};
  const Attended a =
      run_attend(f.cache.layer(0), {&part, 1}, t.queries, Path::oracle, params, true);
  REQUIRE(a.status.ok());
  const Expected64 e = plain_attention(t, params, sees);
  CHECK(relative_l2(a.output, e.output) < 1e-6);
  CHECK(relative_l2(a.lse_ln, e.lse_ln) < 1e-6);
  if (params.sink_logits == nullptr) {
    // The probabilities of a row sum to one, so all columns sum to the number of rows and heads.
    double total = 0;
    for (const float s : a.column_sums) total += s;
    CHECK(total == Approx(rows * query_heads).epsilon(1e-5));
  }
}

constexpr auto causal = [](int query, int key) { return key <= query; };

}  // namespace

TEST_CASE("causal attention with grouped queries") { check({}, causal); }

TEST_CASE("scale and soft cap") {
  check({.softmax_scale = 0.5f}, causal);
  check({.logit_soft_cap = 1.5f}, causal);
}

TEST_CASE("a sliding window sees its width, the query's own token included") {
  check({.sliding_window_tokens = 70},
        [](int query, int key) { return key <= query && key > query - 70; });
  check({.sliding_window_tokens = 1}, [](int query, int key) { return key == query; });
}

TEST_CASE("sink logits take their share and are part of lse_ln") {
  const float sinks[query_heads] = {0.0f, 3.0f, -2.0f, 6.0f};
  check({.sink_logits = sinks}, causal);
}

TEST_CASE("bad arguments are refused") {
  const Tensors t(2);
  SequenceId sequence;
  Fixture f = filled(t, &sequence);
  const StepPart part{sequence, rows}, stale{{sequence.index, sequence.generation + 1}, 1};
  const auto status = [&](const StepPart& p, const AttendParams& params) {
    return run_attend(f.cache.layer(0), {&p, 1}, t.queries, Path::oracle, params).status.code;
  };
  CHECK(status(part, {.softmax_scale = -1}) == StatusCode::invalid_argument);
  CHECK(status(part, {.latent_output = true}) == StatusCode::invalid_argument);
  CHECK(status(stale, {}) == StatusCode::stale_sequence);
}
