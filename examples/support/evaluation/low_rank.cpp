#include "evaluation/low_rank.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

#include "evaluation/output_metric.hpp"
#include "evaluation/window.hpp"
#include "evaluation/window_sums.hpp"

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

/// The metric of all KV heads' value errors.
Matrix value_metric(const LlamaConfig& config, const LlamaLayer& layer) {
  const int d = config.head_dim;
  Matrix metric = Matrix::Zero(config.kv_heads * d, config.kv_heads * d);
  for (int h = 0; h < config.kv_heads; ++h) {
    metric.block(h * d, h * d, d, d) = output_metric(config, layer, h);
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

/// The channel that RoPE turns together with channel `c` of a head.
int rope_partner(const LlamaConfig& config, int c) {
  if (c >= config.rope_dim) return c;
  if (config.rope_pairing == RopePairing::interleaved) return c ^ 1;
  const int half = config.rope_dim / 2;
  return c < half ? c + half : c - half;
}

/// The moments of one window.
std::vector<LayerMoments> window_moments(const LlamaModel& model,
                                         std::span<const std::int32_t> tokens) {
  const LlamaConfig& config = model.config();
  const auto n = static_cast<Eigen::Index>(tokens.size());
  std::vector<LayerMoments> moments(static_cast<std::size_t>(config.layers));
  (void)run_reference(model, tokens, [&](const LayerTrace& trace) {
    LayerMoments& m = moments[static_cast<std::size_t>(trace.layer)];
    const Eigen::Map<const RowMajor> x(trace.normed.data(), n, config.hidden);
    const Matrix inputs = (x.transpose() * x).cast<double>();
    m.inputs.assign(inputs.data(), inputs.data() + inputs.size());

    const int d = config.head_dim;
    const int group = config.query_heads / config.kv_heads;
    const int width = config.kv_heads * d;
    const Eigen::Map<const RowMajor> q(trace.queries.data(), n, config.query_heads * d);
    const Eigen::VectorXd squares = q.colwise().squaredNorm().cast<double>();
    m.queries.assign(static_cast<std::size_t>(width), 0.0);
    for (int h = 0; h < config.query_heads; ++h) {
      for (int c = 0; c < d; ++c) {
        const int channel = h / group * d + c;
        m.queries[static_cast<std::size_t>(channel)] +=
            (squares[h * d + c] + squares[h * d + rope_partner(config, c)]) / (2.0 * group);
      }
    }
    m.tokens = n;
  });
  return moments;
}

void add(const std::vector<double>& part, std::vector<double>* sum) {
  std::transform(part.begin(), part.end(), sum->begin(), sum->begin(), std::plus<>());
}

}  // namespace

std::vector<LayerMoments> moments_of(const LlamaModel& model, std::span<const std::int32_t> tokens,
                                     int threads, const std::function<void(int)>& progress) {
  using Moments = std::vector<LayerMoments>;
  return sum_over_windows(
      model, tokens, threads, progress,
      [&](std::span<const std::int32_t> window) { return window_moments(model, window); },
      [](Moments* sum, Moments& part) {
        if (sum->empty()) {
          *sum = std::move(part);
          return;
        }
        for (std::size_t layer = 0; layer < sum->size(); ++layer) {
          add(part[layer].inputs, &(*sum)[layer].inputs);
          add(part[layer].queries, &(*sum)[layer].queries);
          (*sum)[layer].tokens += part[layer].tokens;
        }
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
