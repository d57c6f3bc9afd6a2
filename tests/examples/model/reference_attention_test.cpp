#include "reference_attention.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "half.hpp"
#include "naive_attention.hpp"
#include "random_values.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::RandomValues;

namespace {

std::vector<double> rounded(const std::vector<float>& values) {
  std::vector<double> result(values.size());
  std::transform(values.begin(), values.end(), result.begin(), round_to_half);
  return result;
}

}  // namespace

TEST_CASE("reference attention agrees with fp64 attention over rounded keys and values") {
  struct Case {
    AttentionShape shape;
    int first_position;
    int queries;
  };
  for (const Case c : {Case{{4, 4, 8}, 0, 5}, Case{{6, 2, 16}, 0, 70}, Case{{9, 3, 64}, 17, 1},
                       Case{{2, 1, 10}, 300, 66}}) {
    CAPTURE(c.shape.query_heads, c.shape.kv_heads, c.shape.head_dim, c.first_position);
    RandomValues random(7);
    const auto count = [](int tokens, int heads, int channels) {
      const int values = tokens * heads * channels;
      return static_cast<std::size_t>(values);
    };
    const int tokens = c.first_position + c.queries;
    const auto q = random.vector(count(c.queries, c.shape.query_heads, c.shape.head_dim), 3.0f);
    const auto k = random.vector(count(tokens, c.shape.kv_heads, c.shape.head_dim));
    const auto v = random.vector(count(tokens, c.shape.kv_heads, c.shape.head_dim));
    const std::vector<double> expected = terse_test::naive_attention(
        c.shape.query_heads, c.shape.kv_heads, c.shape.head_dim,
        std::vector<double>(q.begin(), q.end()), rounded(k), rounded(v), c.first_position);
    std::vector<float> first;
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      const auto output = reference_attention(pool, c.shape, q, k, v, c.first_position);
      double worst = 0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        worst = std::max(worst, std::abs(expected[i] - double(output[i])));
      }
      CHECK(worst < 1e-6);
      first = first.empty() ? output : first;
      CHECK(first == output);
    }
  }
}

TEST_CASE("reference attention refuses sizes that do not fit") {
  ThreadPool pool(1);
  const std::vector<float> q(4 * 8 * 3);
  const std::vector<float> kv(2 * 8 * 3);
  CHECK_NOTHROW(reference_attention(pool, {4, 2, 8}, q, kv, kv));
  CHECK_THROWS_AS(reference_attention(pool, {4, 2, 8}, q, kv, kv, 1), std::invalid_argument);
  CHECK_THROWS_AS(reference_attention(pool, {4, 3, 8}, q, kv, kv), std::invalid_argument);
  CHECK_THROWS_AS(reference_attention(pool, {4, 2, 8}, q, kv, std::vector<float>(3)),
                  std::invalid_argument);
}
