#include "evaluation/low_rank.hpp"

#include <algorithm>
#include <cmath>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

#include "evaluation/window.hpp"

namespace terse::examples {

namespace {

using Matrix = Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double input_damping = 1e-4;  // of the mean diagonal
constexpr double output_damping = 1e-2;

Matrix to_matrix(const std::vector<float>& values, int rows, int columns) {
  return Eigen::Map<const RowMajor>(values.data(), rows, columns).cast<double>();
}

void damp(Matrix* m, double share) { m->diagonal().array() += share * m->diagonal().mean(); }

struct Factors {
  Matrix up;    // [out, rank]
  Matrix down;  // [rank, in]
};

/// W ~ up * down of rank `rank`, the singular values split evenly.
Factors truncate(const Matrix& w, const Matrix& input_factor, const Matrix& output_root, int rank) {
  const Eigen::BDCSVD<Matrix> svd(output_root * w * input_factor,
                                  Eigen::ComputeThinU | Eigen::ComputeThinV);
  const auto roots = svd.singularValues().head(rank).cwiseSqrt();
  Factors f;
  f.up = output_root.ldlt().solve(Matrix(svd.matrixU().leftCols(rank) * roots.asDiagonal()));
  // down = roots V^T C^-1, by solving C^T z = V for the lower triangular C.
  f.down = input_factor.triangularView<Eigen::Lower>()
               .transpose()
               .solve(Matrix(svd.matrixV().leftCols(rank) * roots.asDiagonal()))
               .transpose();
  return f;
}

/// The metric of value errors: sum over the query heads of a KV head of W_o,h^T W_o,h.
Matrix value_metric(const LlamaConfig& config, const LlamaLayer& layer) {
  const int d = config.head_dim;
  const int group = config.query_heads / config.kv_heads;
  const Matrix w_o = to_matrix(layer.w_o, config.hidden, config.query_heads * d);
  Matrix metric = Matrix::Zero(config.kv_heads * d, config.kv_heads * d);
  for (int h = 0; h < config.query_heads; ++h) {
    const Matrix part = w_o.middleCols(h * d, d);
    metric.block(h / group * d, h / group * d, d, d) += part.transpose() * part;
  }
  return metric;
}

Matrix root_of(Matrix metric) {
  damp(&metric, output_damping);
  return Eigen::SelfAdjointEigenSolver<Matrix>(metric).operatorSqrt();
}

void store(const Factors& f, std::vector<float>* up, std::vector<float>* down) {
  const RowMajor u = f.up.cast<float>(), v = f.down.cast<float>();
  up->assign(u.data(), u.data() + u.size());
  down->assign(v.data(), v.data() + v.size());
}

}  // namespace

void add_moments(const LlamaModel& model, std::span<const std::int32_t> tokens,
                 std::vector<LayerMoments>* moments) {
  const LlamaConfig& config = model.config();
  const auto n = static_cast<Eigen::Index>(tokens.size());
  moments->resize(static_cast<std::size_t>(config.layers));
  (void)run_reference(model, tokens, [&](const LayerTrace& trace) {
    LayerMoments& m = (*moments)[static_cast<std::size_t>(trace.layer)];
    const auto hidden = static_cast<std::size_t>(config.hidden);
    m.inputs.resize(hidden * hidden, 0.0);
    const Eigen::Map<const RowMajor> x(trace.normed.data(), n, config.hidden);
    Eigen::Map<Matrix>(m.inputs.data(), config.hidden, config.hidden) +=
        (x.transpose() * x).cast<double>();

    const int d = config.head_dim, group = config.query_heads / config.kv_heads;
    m.queries.resize(static_cast<std::size_t>(config.kv_heads * d), 0.0);
    const Eigen::Map<const RowMajor> q(trace.queries.data(), n, config.query_heads * d);
    const Eigen::VectorXd squares = q.colwise().squaredNorm().cast<double>();
    for (int h = 0; h < config.query_heads; ++h) {
      for (int c = 0; c < d; ++c) {
        int partner = c;
        if (c < config.rope_dim) {
          const int half = config.rope_dim / 2;
          partner = config.rope_pairing == RopePairing::interleaved ? c ^ 1
                    : c < half                                      ? c + half
                                                                    : c - half;
        }
        m.queries[static_cast<std::size_t>(h / group * d + c)] +=
            (squares[h * d + c] + squares[h * d + partner]) / (2.0 * group);
      }
    }
    m.tokens += n;
  });
}

std::vector<LayerFactors> factorise(const LlamaModel& model,
                                    const std::vector<LayerMoments>& moments,
                                    const FactorRequest& request) {
  const LlamaConfig& config = model.config();
  const int width = config.kv_heads * config.head_dim;
  const auto rank_of = [&](double share) {
    return std::clamp(static_cast<int>(std::lround(share * width / 16)) * 16, 16, width);
  };
  std::vector<LayerFactors> factors(static_cast<std::size_t>(config.layers));
  for (int l = 0; l < config.layers; ++l) {
    const LlamaLayer& layer = model.layer(l);
    const LayerMoments& m = moments.at(static_cast<std::size_t>(l));
    Matrix inputs = Eigen::Map<const Matrix>(m.inputs.data(), config.hidden, config.hidden) /
                    static_cast<double>(m.tokens);
    damp(&inputs, input_damping);
    const Matrix input_factor = inputs.llt().matrixL();
    Matrix key_root = Matrix::Identity(width, width), value_root = key_root;
    if (request.both_sides) {
      const Matrix key_metric = (Eigen::Map<const Eigen::VectorXd>(m.queries.data(), width) /
                                 static_cast<double>(m.tokens))
                                    .asDiagonal();
      key_root = root_of(key_metric);
      value_root = root_of(value_metric(config, layer));
    }
    LayerFactors& f = factors[static_cast<std::size_t>(l)];
    f.key_rank = rank_of(request.key_share);
    f.value_rank = rank_of(request.value_share);
    store(truncate(to_matrix(layer.w_k, width, config.hidden), input_factor, key_root, f.key_rank),
          &f.key_up, &f.key_down);
    store(truncate(to_matrix(layer.w_v, width, config.hidden), input_factor, value_root,
                   f.value_rank),
          &f.value_up, &f.value_down);
  }
  return factors;
}

}  // namespace terse::examples
