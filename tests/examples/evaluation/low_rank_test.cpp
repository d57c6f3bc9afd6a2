// Low-rank factors against their definitions.

#include "evaluation/low_rank.hpp"

#include <atomic>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

#include "small_model.hpp"
#include "support/catch.hpp"

using namespace terse::examples;
using terse_test::random_tokens;
using terse_test::small_model_file;

namespace {

using Matrix = Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix matrix(const std::vector<float>& values, int rows, int columns) {
  REQUIRE(values.size() == static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  return Eigen::Map<const RowMajor>(values.data(), rows, columns).cast<double>();
}

struct Fixture {
  ThreadPool pool{1};
  LlamaModel model = LlamaModel::load(small_model_file(), pool);
  std::vector<LayerMoments> moments;
  int width = model.config().kv_heads * model.config().head_dim;
  int hidden = model.config().hidden;

  Fixture() { moments = moments_of(model, random_tokens(500, model.config().vocabulary, 5)); }

  /// Cholesky factor of the inputs' second moment, damped by 1e-4 of its mean diagonal.
  [[nodiscard]] Matrix input_factor(std::size_t layer) const {
    const LayerMoments& m = moments[layer];
    Matrix second = Eigen::Map<const Matrix>(m.inputs.data(), hidden, hidden) / double(m.tokens);
    second.diagonal().array() += 1e-4 * second.diagonal().mean();
    return second.llt().matrixL();
  }

  [[nodiscard]] Matrix root(Matrix metric) const {
    metric.diagonal().array() += 1e-2 * metric.diagonal().mean();
    return Eigen::SelfAdjointEigenSolver<Matrix>(metric).operatorSqrt();
  }

  /// Square roots of the metrics of key and value errors.
  [[nodiscard]] Matrix key_root(std::size_t layer) const {
    const LayerMoments& m = moments[layer];
    return root(
        Matrix((Eigen::Map<const Eigen::VectorXd>(m.queries.data(), width) / double(m.tokens))
                   .asDiagonal()));
  }
  [[nodiscard]] Matrix value_root(int layer) const {
    const LlamaConfig& c = model.config();
    // Outputs of a KV head go through the columns of all its query heads.
    const Matrix w_o = matrix(model.layer(layer).w_o, hidden, c.query_heads * c.head_dim);
    Matrix metric = Matrix::Zero(width, width);
    for (int kv = 0; kv < c.kv_heads; ++kv) {
      for (int a = 0; a < c.head_dim; ++a) {
        for (int b = 0; b < c.head_dim; ++b) {
          double sum = 0;
          for (int q = 0; q < c.query_heads / c.kv_heads; ++q) {
            const int first = (kv * (c.query_heads / c.kv_heads) + q) * c.head_dim;
            sum += w_o.col(first + a).dot(w_o.col(first + b));
          }
          metric(kv * c.head_dim + a, kv * c.head_dim + b) = sum;
        }
      }
    }
    return root(metric);
  }

  struct Error {
    Matrix key, value;  // W - up * down
  };
  [[nodiscard]] Error error(const std::vector<LayerFactors>& factors, int layer) const {
    const LayerFactors& f = factors[static_cast<std::size_t>(layer)];
    const LlamaLayer& weights = model.layer(layer);
    return {matrix(weights.w_k, width, hidden) -
                matrix(f.key_up, width, f.key_rank) * matrix(f.key_down, f.key_rank, hidden),
            matrix(weights.w_v, width, hidden) - matrix(f.value_up, width, f.value_rank) *
                                                     matrix(f.value_down, f.value_rank, hidden)};
  }
};

/// Sum of the squared singular values beyond the first `rank`.
double discarded(const Matrix& m, int rank) {
  const Eigen::VectorXd values = Eigen::JacobiSVD<Matrix>(m).singularValues();
  return values.tail(values.size() - rank).squaredNorm();
}

}  // namespace

TEST_CASE("moments are those of the projections' inputs and of queries before RoPE") {
  Fixture f;
  const LlamaConfig& c = f.model.config();
  const auto tokens = random_tokens(11, c.vocabulary, 7);
  const std::vector<LayerMoments> moments = moments_of(f.model, tokens);
  REQUIRE(moments.size() == 2);
  CHECK(moments[1].tokens == 11);
  const auto normed = f.model.attention_inputs(0, f.model.embed(tokens));
  const Matrix x = matrix(normed, 11, f.hidden);
  const Matrix inputs = Eigen::Map<const Matrix>(moments[0].inputs.data(), f.hidden, f.hidden);
  CHECK((inputs - x.transpose() * x).norm() < 1e-5 * inputs.norm());
  const Matrix q = matrix(f.model.qkv(0, normed, 0, Rope::none).q, 11, c.query_heads * c.head_dim);
  // KV head 1 serves query heads 3 to 5; interleaved pairs (6, 7) share one mean.
  double sum = 0;
  for (const int head : {3, 4, 5}) {
    for (const int channel : {6, 7}) sum += q.col(head * c.head_dim + channel).squaredNorm();
  }
  for (const int channel : {6, 7}) {
    CHECK(moments[0].queries[static_cast<std::size_t>(c.head_dim + channel)] ==
          Approx(sum / 6).epsilon(1e-5));
  }
}

TEST_CASE("a text longer than the model's context is run in windows, on any number of threads") {
  ThreadPool pool(1);
  const LlamaModel model = LlamaModel::load(small_model_file({.context_tokens = 100}), pool);
  const auto tokens = random_tokens(250, model.config().vocabulary, 7);
  const std::span<const std::int32_t> all(tokens);
  const auto whole = moments_of(model, all);
  const auto first = moments_of(model, all.first(100)),
             second = moments_of(model, all.subspan(100, 100)),
             third = moments_of(model, all.subspan(200));
  for (std::size_t layer = 0; layer < 2; ++layer) {
    CHECK(whole[layer].tokens == 250);
    bool are_sums = true;
    for (std::size_t i = 0; i < whole[layer].inputs.size(); ++i) {
      are_sums &= whole[layer].inputs[i] ==
                  first[layer].inputs[i] + second[layer].inputs[i] + third[layer].inputs[i];
    }
    CHECK(are_sums);
  }

  std::atomic<int> reported{0};
  const auto shared = moments_of(model, all, 3, [&](int count) { reported += count; });
  CHECK(reported == 250);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    CHECK(shared[layer].inputs == whole[layer].inputs);
    CHECK(shared[layer].queries == whole[layer].queries);
  }
}

TEST_CASE("full rank is the projection itself") {
  Fixture f;
  for (const bool both_sides : {false, true}) {
    const auto factors = factorise(f.model, f.moments, {1.0, 1.0, both_sides});
    for (int layer = 0; layer < 2; ++layer) {
      const auto error = f.error(factors, layer);
      CHECK(factors[0].key_rank == f.width);
      CHECK(error.key.norm() < 1e-4 * matrix(f.model.layer(layer).w_k, f.width, f.hidden).norm());
      CHECK(error.value.norm() < 1e-4 * matrix(f.model.layer(layer).w_v, f.width, f.hidden).norm());
    }
  }
}

TEST_CASE("the whitened error is that of the discarded singular values") {
  Fixture f;
  for (const bool both_sides : {false, true}) {
    const auto factors = factorise(f.model, f.moments, {0.5, 0.75, both_sides});
    for (int layer = 0; layer < 2; ++layer) {
      const auto& own = factors[static_cast<std::size_t>(layer)];
      REQUIRE(own.key_rank == 64);
      REQUIRE(own.value_rank == 96);
      const Matrix c = f.input_factor(static_cast<std::size_t>(layer));
      const Matrix one = Matrix::Identity(f.width, f.width);
      const Matrix key_side = both_sides ? f.key_root(static_cast<std::size_t>(layer)) : one;
      const Matrix value_side = both_sides ? f.value_root(layer) : one;
      const auto error = f.error(factors, layer);
      const LlamaLayer& weights = f.model.layer(layer);
      INFO("layer " << layer << ", both sides " << both_sides);
      CHECK((key_side * error.key * c).squaredNorm() ==
            Approx(discarded(key_side * matrix(weights.w_k, f.width, f.hidden) * c, 64))
                .epsilon(1e-3));
      CHECK((value_side * error.value * c).squaredNorm() ==
            Approx(discarded(value_side * matrix(weights.w_v, f.width, f.hidden) * c, 96))
                .epsilon(1e-3));
    }
  }
}

TEST_CASE("each whitening wins in its own metric") {
  Fixture f;
  const auto one_sided = factorise(f.model, f.moments, {0.5, 0.5, false});
  const auto two_sided = factorise(f.model, f.moments, {0.5, 0.5, true});
  for (int layer = 0; layer < 2; ++layer) {
    const Matrix c = f.input_factor(static_cast<std::size_t>(layer));
    const Matrix key_root = f.key_root(static_cast<std::size_t>(layer));
    const Matrix value_root = f.value_root(layer);
    const auto one = f.error(one_sided, layer), two = f.error(two_sided, layer);
    CHECK((key_root * two.key * c).norm() < (key_root * one.key * c).norm());
    CHECK((value_root * two.value * c).norm() < (value_root * one.value * c).norm());
    CHECK((one.key * c).norm() < (two.key * c).norm());
    CHECK((one.value * c).norm() < (two.value * c).norm());
  }
}

TEST_CASE("ranks are multiples of 16") {
  Fixture f;
  const auto factors = factorise(f.model, f.moments, {0.01, 0.3, false});
  CHECK(factors[0].key_rank == 16);
  CHECK(factors[0].value_rank == 32);
  CHECK(factors[1].key_down.size() == 16u * static_cast<std::size_t>(f.hidden));
  CHECK(factors[1].value_up.size() == 32u * static_cast<std::size_t>(f.width));
}
