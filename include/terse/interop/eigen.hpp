/// Calibration of codecs from moments of a model's keys, values and queries, with Eigen.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/LU>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/calibration.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Sums over the vectors `[channel]` of a stream.
struct VectorMoments {
  double count = 0;
  Eigen::VectorXd sum;       ///< [channel]
  Eigen::MatrixXd products;  ///< [channel, channel]: sum of x x^T

  /// Adds the columns of `x [channel, vector]`.
  void add(const Eigen::MatrixXd& x) {
    if (count == 0) {
      sum = Eigen::VectorXd::Zero(x.rows());
      products = Eigen::MatrixXd::Zero(x.rows(), x.rows());
    }
    count += static_cast<double>(x.cols());
    sum += x.rowwise().sum();
    products += x * x.transpose();
  }
  void add(const VectorMoments& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    count += other.count;
    sum += other.sum;
    products += other.products;
  }
};

/// How a stream is calibrated.
struct CalibrationSpec {
  bool centres_keys = true;  ///< takes their mean off, which the softmax cancels
  /// The basis multiplies by the covariance to the power of minus this: 0 only rotates, 1/2 makes
  /// all directions equal. In between errors are spread as the grid and the metric want them.
  double whitening = 0.25;
  double metric_damping = 0.01;      ///< of its mean diagonal, added to the metric
  double covariance_damping = 1e-4;  ///< of its mean diagonal, added to the covariance
};

/// Calibration of one stream, for Calibration::make: `out [CalibrationLayout{channels}.floats()]`,
/// from_basis excepted. Errors: invalid_argument (no vectors, a metric of another size, of trace 0
/// for keys, or not positive definite, a number that is none).
///
/// \param stored of the stream's vectors: keys after RoPE, or values
/// \param metric `[channel, channel]`, in which errors count: for keys the sum of q q^T over the
///   queries of the KV head after RoPE, each times what its logits' errors matter where that is
///   known, for values the sum over its query heads of W_o^T W_o
[[nodiscard]] inline Status calibrate_stream(Side side, const VectorMoments& stored,
                                             const Eigen::MatrixXd& metric,
                                             const CalibrationSpec& spec, float* out) {
  using Eigen::MatrixXd, Eigen::VectorXd;
  if (!(stored.count > 0)) {
    return error(StatusCode::invalid_argument, "terse::calibrate_stream: there are no vectors");
  }
  if (metric.rows() != stored.sum.size() || metric.cols() != stored.sum.size()) {
    return error(StatusCode::invalid_argument,
                 "terse::calibrate_stream: the metric has another size than the vectors; detail: "
                 "its rows",
                 metric.rows());
  }
  if (side == Side::key && metric.trace() == 0) {
    return error(StatusCode::invalid_argument,
                 "terse::calibrate_stream: the metric of keys is zero: no query counts");
  }
  const auto width = static_cast<int>(stored.sum.size());
  const CalibrationLayout at{width};
  const auto damped = [](MatrixXd m, double share) {
    // Streams that never vary are left as they are.
    m.diagonal().array() += share * m.diagonal().mean() + 1e-30;
    return m;
  };
  const VectorXd mean = side == Side::key && spec.centres_keys ? VectorXd(stored.sum / stored.count)
                                                               : VectorXd(VectorXd::Zero(width));
  const MatrixXd covariance =
      damped(stored.products / stored.count - mean * mean.transpose(), spec.covariance_damping);
  const Eigen::SelfAdjointEigenSolver<MatrixXd> axes(covariance);
  const VectorXd scales = axes.eigenvalues().cwiseMax(1e-30).array().pow(-spec.whitening).matrix();
  MatrixXd basis = axes.eigenvectors() * scales.asDiagonal() * axes.eigenvectors().transpose();
  // Turned vectors keep their size on average: in the tail they are stored in 16 bits.
  basis *= std::sqrt(covariance.trace() / (basis * covariance * basis.transpose()).trace());
  std::vector<float> column(static_cast<std::size_t>(width));
  for (int c = 0; c < width; ++c) {
    for (int k = 0; k < width; ++k) {
      column[static_cast<std::size_t>(k)] = static_cast<float>(basis(k, c));
    }
    hadamard(column.data(), width, hadamard_size(width, 256));
    for (int k = 0; k < width; ++k) basis(k, c) = column[static_cast<std::size_t>(k)];
  }
  const auto metric_in = [&](const MatrixXd& turn) {
    const MatrixXd back = turn.inverse();
    return damped(back.transpose() * metric * back, spec.metric_damping);
  };
  // The channel that counts most is rounded first, that is, stored last.
  const VectorXd importance = metric_in(basis).diagonal();
  std::vector<int> order(static_cast<std::size_t>(width));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return importance[a] < importance[b]; });
  MatrixXd turn(width, width);
  for (int k = 0; k < width; ++k) {
    for (int c = 0; c < width; ++c) {
      const auto entry = static_cast<float>(basis(order[static_cast<std::size_t>(k)], c));
      turn(k, c) = to_float(to_f16_saturating(entry));  // as Calibration keeps it
    }
  }
  MatrixXd shaped = metric_in(turn);
  const double scale = shaped.diagonal().mean();
  shaped /= scale;
  const Eigen::LLT<MatrixXd> factors(shaped);
  if (!shaped.allFinite() || !(scale > 0) || factors.info() != Eigen::Success) {
    return error(StatusCode::invalid_argument,
                 "terse::calibrate_stream: the metric is not positive definite, or a number is "
                 "NaN or infinite");
  }
  const MatrixXd lower = factors.matrixL();
  for (int c = 0; c < width; ++c) {
    out[at.mean() + c] = static_cast<float>(mean[c]);
    out[at.weight() + c] = static_cast<float>(lower(c, c) * lower(c, c));
    for (int k = 0; k < width; ++k) {
      const std::ptrdiff_t ck = std::ptrdiff_t{c} * width + k;
      out[at.to_basis() + ck] = static_cast<float>(turn(k, c));
      out[at.feedback() + ck] = k < c ? static_cast<float>(lower(c, k) / lower(k, k)) : 0.0f;
    }
  }
  return {};
}

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
