// What errors of logits do to a head's output, against finite differences of the softmax.
#include "evaluation/logit_weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using namespace terse::examples;
using terse::tests::Random;

namespace {

constexpr int dim = 8, query_heads = 4, kv_heads = 2, tokens = 70;  // more than a block of queries

struct Layer {
  LlamaConfig config;
  std::vector<float> queries, keys, values;
  Eigen::MatrixXd metric;

  Layer() {
    config.query_heads = query_heads;
    config.kv_heads = kv_heads;
    config.head_dim = dim;
    Random random(1);
    queries = random.normals(std::size_t{tokens * query_heads * dim}, 2.0f);
    keys = random.normals(std::size_t{tokens * kv_heads * dim}, 2.0f);
    values = random.normals(std::size_t{tokens * kv_heads * dim});
    const auto root = random.normals(std::size_t{dim * dim});
    const Eigen::MatrixXd a =
        Eigen::Map<const Eigen::MatrixXf>(root.data(), dim, dim).cast<double>();
    metric = a.transpose() * a;
  }
  [[nodiscard]] std::vector<double> weights(int head, int sinks, int tail) const {
    return logit_weights(config, {0, {}, queries, keys, values}, queries, head, metric, sinks,
                         tail);
  }
  [[nodiscard]] Eigen::VectorXd vector(const std::vector<float>& x, int heads, int token,
                                       int head) const {
    return Eigen::Map<const Eigen::VectorXf>(x.data() + (token * heads + head) * dim, dim)
        .cast<double>();
  }
  /// The head's output at a token, with the logit of token `moved` larger by `step`.
  [[nodiscard]] Eigen::VectorXd output(int head, int token, int moved, double step) const {
    const Eigen::VectorXd q = vector(queries, query_heads, token, head);
    Eigen::VectorXd sum = Eigen::VectorXd::Zero(dim);
    double total = 0;
    for (int i = 0; i <= token; ++i) {
      const double logit = q.dot(vector(keys, kv_heads, i, head / 2)) / std::sqrt(double{dim}) +
                           (i == moved ? step : 0.0);
      sum += std::exp(logit) * vector(values, kv_heads, i, head / 2);
      total += std::exp(logit);
    }
    return sum / total;
  }
};

}  // namespace

TEST_CASE("queries weigh as much as errors of the stored keys' logits move the output") {
  const Layer layer;
  constexpr int sinks = 2, tail = 5;
  constexpr double step = 1e-4;
  for (const int head : {0, 3}) {
    const std::vector<double> weights = layer.weights(head, sinks, tail);
    REQUIRE(weights.size() == std::size_t{tokens});
    for (int t = 0; t < tokens; ++t) {
      double expected = 0;
      for (int i = sinks; i <= t - tail; ++i) {
        const Eigen::VectorXd slope =
            (layer.output(head, t, i, step) - layer.output(head, t, i, -step)) / (2 * step);
        expected += slope.dot(layer.metric * slope);
      }
      CAPTURE(head, t);
      CHECK(weights[static_cast<std::size_t>(t)] == Approx(expected).epsilon(1e-3).margin(5e-5));
    }
  }
}

TEST_CASE("tokens that are all exact weigh nothing") {
  const Layer layer;
  const std::vector<double> weights = layer.weights(1, 4, tokens);
  CHECK(std::all_of(weights.begin(), weights.end(), [](double w) { return w == 0.0; }));
}
