// TurboQuant_prod: bias and variance of products beside algorithm 2 in doubles with a Gaussian
// matrix, the formula number by number, the matrices of signs, hard input.
#include "terse/quant/turboquant_prod.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "terse/testing/check_codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Bits>
using Independent = typename TurboQuantProd<TurboQuantProdSpec{.bits = Bits}>::key_codec;
template <int Bits>
using Orthogonal = typename TurboQuantProd<TurboQuantProdSpec{
    .bits = Bits, .rows = SketchRows::orthogonal}>::key_codec;
template <int Bits>
using MseOfThePaper = TurboQuant<TurboQuantSpec{.bits = Bits, .corrects_norm = false}>;

double dot(const float* a, const float* b, int width) {
  double sum = 0;
  for (int c = 0; c < width; ++c) sum += double{a[c]} * b[c];
  return sum;
}

/// Of products <q, y> with what is left of Gaussian vectors x. They are linear in q, so averages
/// over all its directions are those of y - x: for |q| = |x| = 1 the gain of <q, x> is <x, y>, and
/// the variance of <q, y - x> is |y - x|^2 / width.
struct Products {
  double gain;
  double standard_error;  ///< of the gain
  double variance;        ///< times width
};

/// `decode(x [64, width])` gives what is left of a block.
template <class Decode>
Products products(int width, int blocks, Decode&& decode) {
  Random random(11);
  const auto size = block_tokens * static_cast<std::size_t>(width);
  double gains = 0, squares = 0, distances = 0;
  for (int i = 0; i < blocks; ++i) {
    const std::vector<float> x = random.normals(size), y = decode(x);
    for (std::size_t at = 0; at < size; at += static_cast<std::size_t>(width)) {
      const double norm = dot(&x[at], &x[at], width), gain = dot(&x[at], &y[at], width) / norm;
      gains += gain;
      squares += gain * gain;
      distances += 1 - 2 * gain + dot(&y[at], &y[at], width) / norm;
    }
  }
  const double count = block_tokens * blocks, mean = gains / count;
  return {mean, std::sqrt((squares / count - mean * mean) / count), distances / count};
}
template <Codec C>
Products products(int width, int blocks) {
  return products(width, blocks,
                  [&](const std::vector<float>& x) { return round_trip<C>(Side::key, width, x); });
}

/// Algorithm 2 in doubles, with a Gaussian matrix for each block. Gaussian vectors need no
/// rotation.
template <int Bits>
class OfThePaper {
 public:
  explicit OfThePaper(int width) : width_(width) {}

  [[nodiscard]] std::vector<float> operator()(const std::vector<float>& x) {
    matrix_ = random_.normals(x.size() / block_tokens * static_cast<std::size_t>(width_));
    std::vector<float> y(x.size());
    const auto width = static_cast<std::size_t>(width_);
    for (std::size_t at = 0; at < x.size(); at += width) decode(&x[at], &y[at]);
    return y;
  }
  /// What the levels leave of a vector's energy, on average.
  [[nodiscard]] double remainder() const { return remainders_ / vectors_; }

 private:
  void decode(const float* x, float* y) {
    using Levels = NormalLevels<Bits - 1>;
    const auto width = static_cast<std::size_t>(width_);
    const double root = std::sqrt(static_cast<double>(width_));
    const double size = std::sqrt(dot(x, x, width_));
    std::vector<double> level(width), remainder(width);
    double squares = 0;
    for (std::size_t c = 0; c < width; ++c) {
      level[c] = double{Levels::level(Levels::nearest(static_cast<float>(x[c] * root / size)))};
      remainder[c] = x[c] / size - level[c] / root;
      squares += remainder[c] * remainder[c];
    }
    remainders_ += squares;
    vectors_ += 1;
    std::vector<double> sketch(width, 0.0);
    for (std::size_t row = 0; row < width; ++row) {
      double sum = 0;
      for (std::size_t c = 0; c < width; ++c) {
        sum += double{matrix_[row * width + c]} * remainder[c];
      }
      for (std::size_t c = 0; c < width; ++c) {
        sketch[c] += sum < 0 ? -double{matrix_[row * width + c]} : double{matrix_[row * width + c]};
      }
    }
    const double scale = std::sqrt(std::acos(-1.0) / 2) / width_ * std::sqrt(squares);
    for (std::size_t c = 0; c < width; ++c) {
      y[c] = static_cast<float>(size * (level[c] / root + scale * sketch[c]));
    }
  }

  int width_;
  Random random_{12};
  double remainders_ = 0, vectors_ = 0;
  std::vector<float> matrix_;  // [row, channel]
};

/// `published`: the error of TurboQuant_mse with a bit less, for many channels.
template <int Bits>
void check_products(int width, double published) {
  constexpr int blocks = 60;
  OfThePaper<Bits> paper(width);
  const Products of_paper = products(width, blocks, paper);
  const double half_pi = std::acos(-1.0) / 2, remainder = paper.remainder();
  CAPTURE(Bits, width, remainder);
  CHECK(std::fabs(remainder / published - 1) < 0.05);
  const auto check = [&](const char* name, const Products& p, double variance, double excess) {
    CAPTURE(name, p.gain, p.standard_error, p.variance, variance);
    CHECK(p.gain - 1 > -4 * p.standard_error);
    CHECK(p.gain - 1 < excess + 4 * p.standard_error);
    CHECK(std::fabs(p.variance / variance - 1) < 0.03);
  };
  const Products found = products<Independent<Bits>>(width, blocks);
  check("Gaussian, in doubles", of_paper, half_pi * remainder, 0);
  const double excess = 0.3 / width;  // of rows of signs
  check("independent", found, half_pi * remainder, excess);
  check("orthogonal", products<Orthogonal<Bits>>(width, blocks), (half_pi - 1) * remainder, excess);
  // With as many bits the codes alone shrink products, and vary less.
  const Products shrunk = products<MseOfThePaper<Bits>>(width, blocks);
  CAPTURE(shrunk.gain, shrunk.standard_error, shrunk.variance, found.variance);
  CHECK(shrunk.variance < 0.25 * found.variance);
  CHECK(shrunk.gain < 1 - 10 * shrunk.standard_error);
}

/// Element (row, channel) of the sketch's matrix.
template <SketchRows Rows>
int element(int row, int channel) {
  return (sketch_column<Rows>(channel, row / 64) >> row % 64 & 1u) != 0 ? -1 : 1;
}

/// The largest magnitude of a product of two columns, or of a column's sum.
template <SketchRows Rows>
int largest_product(int width) {
  int largest = 0;
  for (int a = 0; a < width; ++a) {
    int sum = 0;
    for (int row = 0; row < width; ++row) sum += element<Rows>(row, a);
    if (Rows == SketchRows::independent) largest = std::max(largest, std::abs(sum));
    for (int b = 0; b < a; ++b) {
      int product = 0;
      for (int row = 0; row < width; ++row) {
        product += element<Rows>(row, a) * element<Rows>(row, b);
      }
      largest = std::max(largest, std::abs(product));
    }
  }
  return largest;
}

/// Every number of a block is what the formula gives in doubles.
template <int Bits, SketchRows Rows>
void check_formula(int width) {
  using C = SketchedLevels<SketchedLevelsSpec{.bits = Bits, .rows = Rows}>;
  using Levels = NormalLevels<Bits - 1>;
  Random random(13);
  const auto x = random.normals(block_tokens * static_cast<std::size_t>(width), 3.0f);
  CodecBlock<C> block(Side::key, width);
  block.encode_in_basis(x);
  const auto y = block.decode_in_basis();
  const double root_half_pi = std::sqrt(std::acos(-1.0) / 2);
  for (int t = 0; t < block_tokens; ++t) {
    const float* token = &x[block.index(t, 0)];
    const double size = std::sqrt(dot(token, token, width) / width);
    const double f = to_float(to_f16(static_cast<float>(size)));
    std::vector<double> level(static_cast<std::size_t>(width)), remainder(level.size());
    double squares = 0;
    for (std::size_t c = 0; c < level.size(); ++c) {
      level[c] = double{Levels::level(Levels::nearest(static_cast<float>(token[c] / size)))};
      remainder[c] = token[c] - f * level[c];
      squares += remainder[c] * remainder[c];
    }
    std::vector<double> sketch(level.size(), 0.0);
    for (int row = 0; row < width; ++row) {
      double sum = 0;
      for (int c = 0; c < width; ++c) {
        sum += element<Rows>(row, c) * remainder[static_cast<std::size_t>(c)];
      }
      for (int c = 0; c < width; ++c) {
        sketch[static_cast<std::size_t>(c)] += element<Rows>(row, c) * (sum < 0 ? -1 : 1);
      }
    }
    const double g = std::sqrt(squares) * root_half_pi / width;
    for (std::size_t c = 0; c < level.size(); ++c) {
      CAPTURE(Bits, width, t, c, f, g);
      REQUIRE(std::fabs(y[block.index(t, 0) + c] - (f * level[c] + g * sketch[c])) <
              1e-3 * g * (1 + std::fabs(sketch[c])));
    }
  }
}

}  // namespace

TEST_CASE("keys take two factors a token, values one") {
  CHECK(bits_per_element(TurboQuantProd2::key_codec::record(Side::key, 64), 64) == 2.5);
  CHECK(bits_per_element(TurboQuantProd3::key_codec::record(Side::key, 64), 64) == 3.5);
  CHECK(bits_per_element(TurboQuantProd4::key_codec::record(Side::key, 128), 128) == 4.25);
  CHECK(bits_per_element(TurboQuantProd4::value_codec::record(Side::value, 128), 128) == 4.125);
}

TEST_CASE("products are unbiased and vary as those of a Gaussian sketch") {
  check_products<2>(64, 0.36338);
  check_products<3>(64, 0.117482);
  check_products<4>(64, 0.034548);
}

TEST_CASE("numbers are those of the formula") {
  check_formula<2, SketchRows::independent>(64);
  check_formula<3, SketchRows::independent>(20);
  check_formula<4, SketchRows::independent>(144);
  check_formula<2, SketchRows::orthogonal>(16);
  check_formula<3, SketchRows::orthogonal>(256);
}

TEST_CASE("columns of the sketch are orthogonal, or as near to it as random ones") {
  for (const int width : {2, 16, 64, 256}) {
    CAPTURE(width);
    CHECK(largest_product<SketchRows::orthogonal>(width) == 0);
  }
  for (const int width : {64, 144, 256}) {
    CAPTURE(width);
    CHECK(largest_product<SketchRows::independent>(width) < 6 * std::sqrt(width));
  }
  // Not the signs of the basis, which would leave the second turn to undo the first.
  int alike = 0;
  for (int c = 0; c < 256; ++c) {
    alike += (element<SketchRows::orthogonal>(0, c) < 0) == turns_sign(c) ? 1 : 0;
  }
  CHECK(std::abs(alike - 128) < 40);
}

TEST_CASE("orthogonal rows are refused where no Hadamard matrix is") {
  CHECK(supports_width<Orthogonal<2>>(Side::key, 128).ok());
  CHECK(supports_width<Orthogonal<2>>(Side::key, 80).code == StatusCode::unsupported);
  CHECK(supports_width<Independent<2>>(Side::key, 80).ok());
}

TEST_CASE("finite input stays finite, zeros stay zeros, the contract is kept") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<Independent<2>>(Side::key, width));
    CHECK(stays_finite<Independent<4>>(Side::value, width));
  }
  CHECK(stays_finite<Orthogonal<3>>(Side::key, 64));
  const std::vector<float> zeros(64 * 80, 0.0f), alike(64 * 128, 5.0f);
  CHECK(round_trip<Independent<3>>(Side::key, 80, zeros) == zeros);
  CHECK(mean_square_error(alike, round_trip<Independent<4>>(Side::key, 128, alike)) < 0.1 * 25);
  for (const float size : {1e-9f, 1e-25f, 1e-40f}) {
    CHECK(tiny_numbers_are_zeros<Independent<2>>(Side::key, 64, size));
    CHECK(tiny_numbers_are_zeros<Independent<4>>(Side::value, 80, size));
  }
  for (const int width : {20, 64, 80, 128}) {
    for (const auto& report :
         {testing::check_codec<Independent<2>>(width), testing::check_codec<Independent<3>>(width),
          testing::check_codec<Independent<4>>(width)}) {
      INFO(report.failure);
      CHECK(report.ok());
    }
  }
  for (const int width : {64, 128}) {
    const auto report = testing::check_codec<Orthogonal<2>>(width);
    INFO(report.failure);
    CHECK(report.ok());
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Independent<2>>(Side::key, 64) == 0x784a7343574c076dull);
  CHECK(golden_hash<Independent<3>>(Side::value, 80) == 0xa55a2de11da68e40ull);
  CHECK(golden_hash<Independent<4>>(Side::key, 256) == 0x5ec3d7ed1d9bfb25ull);
  CHECK(golden_hash<Orthogonal<2>>(Side::key, 128) == 0x10499d5a75860f70ull);
}
