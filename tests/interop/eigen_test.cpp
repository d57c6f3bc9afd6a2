// Calibration from moments.
#include "terse/interop/eigen.hpp"

#include <cmath>
#include <utility>
#include <vector>

#include "terse/cache/calibration.hpp"
#include "terse/quant/shaped.hpp"

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int width = 64;
using Grid = ShapedGrid<ShapedGridSpec{.bits = 2}>;

/// Vectors whose channels differ in size a hundredfold, far from 0, as keys are; and queries that
/// look along few directions.
struct Streams {
  Eigen::MatrixXd keys{width, 4096}, queries{width, 4096};

  Streams() {
    Random random(1);
    Eigen::MatrixXd mix(width, width), look(width, width);
    for (int i = 0; i < width; ++i) {
      for (int k = 0; k < width; ++k) {
        mix(i, k) = random.normal() * std::pow(10.0, -2.0 * k / width);
        look(i, k) = random.normal() * std::pow(10.0, -1.5 * k / width);
      }
    }
    for (auto* out : {&keys, &queries}) {
      for (int t = 0; t < out->cols(); ++t) {
        for (int c = 0; c < width; ++c) (*out)(c, t) = random.normal();
      }
    }
    keys = (mix * keys).colwise() + Eigen::VectorXd::Constant(width, 3.0);
    queries = look * queries;
  }
};

/// Mean square of the error of q . k, a mean taken off or not, over some keys.
double logit_error(const Streams& streams, const float* calibration) {
  const CodecContext context{Side::key, width, calibration};
  const int count = 256;
  Eigen::MatrixXd errors(width, count);
  std::vector<std::byte> block(Grid::record(Side::key, width).bytes);
  for (int t = 0; t < count; ++t) {
    std::vector<float> x(width), y(width);
    for (int c = 0; c < width; ++c)
      x[static_cast<std::size_t>(c)] = static_cast<float>(streams.keys(c, t));
    std::vector<float> turned = x;
    Grid::to_basis(context, turned.data());
    Grid::encode_token(context, turned.data(), 0, block.data());
    for (int c = 0; c < width; ++c) {
      y[static_cast<std::size_t>(c)] = Grid::decode(context, block.data(), 0, c);
    }
    Grid::from_basis(context, y.data());
    for (int c = 0; c < width; ++c) {
      errors(c, t) = double{x[static_cast<std::size_t>(c)]} - y[static_cast<std::size_t>(c)];
    }
  }
  return (streams.queries.leftCols(count).transpose() * errors).squaredNorm();
}

}  // namespace

TEST_CASE("centring, whitening and shaping each lower the error of logits") {
  const Streams streams;
  VectorMoments keys, queries;
  // In parts, as windows of a text come.
  for (int part = 0; part < 4; ++part) {
    VectorMoments k, q;
    k.add(streams.keys.middleCols(part * 1024, 1024));
    q.add(streams.queries.middleCols(part * 1024, 1024));
    keys.add(k);
    queries.add(q);
  }
  CHECK(keys.count == 4096);
  const auto error_with = [&](const CalibrationSpec& spec, const Eigen::MatrixXd& metric) {
    const auto made = Calibration::make({1, 1, width}, 0, [&](Side side, int, int, float* stream) {
      return calibrate_stream(side, keys, metric, spec, stream);
    });
    REQUIRE(made.ok());
    return logit_error(streams, made->view().slots[0].keys);
  };
  const Eigen::MatrixXd metric = queries.products / queries.count;
  const Eigen::MatrixXd none = Eigen::MatrixXd::Identity(width, width);
  const double plain = logit_error(streams, nullptr);
  const double centred = error_with({.whitening = 0}, none);
  const double uncentred = error_with({.centres_keys = false, .whitening = 0}, metric);
  const double shaped = error_with({.whitening = 0}, metric);
  const double whitened = error_with({}, metric);
  CAPTURE(plain, centred, uncentred, shaped, whitened);
  CHECK(centred < 0.8 * plain);
  CHECK(shaped < 0.5 * centred);
  CHECK(shaped < uncentred);
  CHECK(whitened < shaped);
}

TEST_CASE("streams that never vary are calibrated too") {
  VectorMoments constant;
  constant.add(Eigen::MatrixXd::Constant(width, 100, 2.0));
  const auto made = Calibration::make({1, 1, width}, 0, [&](Side side, int, int, float* stream) {
    // Values that nothing reads have a metric of zero.
    return calibrate_stream(side, constant,
                            Eigen::MatrixXd::Identity(width, width) * (side == Side::key ? 1 : 0),
                            {}, stream);
  });
  CHECK(made.ok());
}

TEST_CASE("moments that say nothing are refused") {
  const auto code = [](const VectorMoments& stored, const Eigen::MatrixXd& metric) {
    const auto made = Calibration::make({1, 1, width}, 0, [&](Side side, int, int, float* stream) {
      return calibrate_stream(side, stored, metric, {}, stream);
    });
    return made.status().code;
  };
  VectorMoments some;
  some.add(Eigen::MatrixXd::Random(width, 200));
  const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(width, width);
  CHECK(code(some, identity) == StatusCode::ok);
  CHECK(code({}, identity) == StatusCode::invalid_argument);
  CHECK(code(some, Eigen::MatrixXd::Identity(8, 8)) == StatusCode::invalid_argument);
  CHECK(code(some, -identity) == StatusCode::invalid_argument);
  CHECK(code(some, 0 * identity) == StatusCode::invalid_argument);
  Eigen::MatrixXd bad = identity;
  bad(3, 3) = std::nan("");
  CHECK(code(some, bad) == StatusCode::invalid_argument);
}
