// The error-shaped grid: with a calibration and without.
#include "terse/quant/shaped.hpp"

#include <cmath>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "terse/testing/check_codec.hpp"

#include "tests/quant/calibrated_stream.hpp"
#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random_calibration.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Bits>
using Grid = ShapedGrid<ShapedGridSpec{.bits = Bits}>;

template <int Count>
using Bits = std::integral_constant<int, Count>;

}  // namespace

TEST_CASE("bits + 16 / width bits per element, with a calibration or without") {
  CHECK(bits_per_element(Grid<2>::record(Side::key, 64), 64) == 2.25);
  CHECK(bits_per_element(Grid<3>::record(Side::value, 64), 64) == 3.25);
  CHECK(bits_per_element(Grid<4>::record(Side::key, 128), 128) == 4.125);
  CHECK(bits_per_element(Grid<1>::record(Side::value, 64), 64) == 1.25);
  CHECK(Grid<1>::supports(Side::value, 256).ok());
  CHECK(Grid<1>::supports(Side::key, 64).code == StatusCode::unsupported);
  CHECK(Grid<2>::supports(Side::key, 256).ok());
  CHECK(Grid<2>::supports(Side::key, 257).code == StatusCode::unsupported);
}

TEST_CASE("without a calibration it is a rotated codec that keeps to the contract") {
  for (const int width : {64, 80}) {
    const testing::Report report = testing::check_codec<Grid<2>>(width);
    INFO(report.failure);
    CHECK(report.ok());
    const testing::Report one = testing::check_codec<Grid<1>>(Side::value, width);
    INFO(one.failure);
    CHECK(one.ok());
  }
  const testing::Report report = testing::check_codec<Grid<3>>(128);
  INFO(report.failure);
  CHECK(report.ok());
}

TEST_CASE("errors on Gaussian data are those of the best uniform grids, the norm kept") {
  // The grids' own are 0.3634, 0.1188, 0.03744, 0.01154; to keep the norm costs a little.
  for (const int width : {64, 128}) {
    const double one = gaussian_error<Grid<1>>(Side::value, width, 10);
    const double two = gaussian_error<Grid<2>>(Side::key, width, 10);
    const double three = gaussian_error<Grid<3>>(Side::value, width, 10);
    const double four = gaussian_error<Grid<4>>(Side::key, width, 10);
    CAPTURE(width, one, two, three, four);
    CHECK((one > 0.37 && one < 0.42));
    CHECK((two > 0.115 && two < 0.13));
    CHECK((three > 0.034 && three < 0.040));
    CHECK((four > 0.0105 && four < 0.0125));
  }
}

TEST_CASE(
    "a calibrated basis is undone, and products with queries are those of keys less their mean") {
  for (const Side side : {Side::key, Side::value}) {
    const CalibratedStream stream(side, 80);
    const CodecContext context = stream.context();
    Random random(2);
    const auto x = random.normals(80), q = random.normals(80);
    std::vector<float> y = x;
    Grid<2>::to_basis(context, y.data());
    double product = 0, in_basis = 0;
    if (side == Side::key) {
      std::vector<float> turned = q;
      Grid<2>::query_to_basis(context, turned.data());
      for (std::size_t c = 0; c < 80; ++c) {
        product += double{q[c]} * x[c];
        in_basis += double{turned[c]} * y[c];
      }
      CHECK(in_basis + Grid<2>::query_offset(context, q.data()) == Approx(product).margin(1e-4));
      CHECK(std::fabs(Grid<2>::query_offset(context, q.data())) > 1e-3);
    }
    Grid<2>::from_basis(context, y.data());
    for (std::size_t c = 0; c < 80; ++c) CHECK(y[c] == Approx(x[c]).margin(1e-4));
  }
}

TEMPLATE_TEST_CASE("shaping lowers the cost of errors, and the factor is unbiased where it counts",
                   "", Grid<1>, Grid<2>, Grid<3>, Grid<4>) {
  for (const Side side : {Side::key, Side::value}) {
    if (!TestType::supports(side, 64).ok()) continue;  // keys of 1 bit
    const CalibratedStream stream(side, 64, 3);
    Random random(4);
    double shaped = 0, plain = 0;
    for (int i = 0; i < 200; ++i) {
      const auto x = random.normals(64);
      const std::vector<double> exact(x.begin(), x.end());
      const auto with = stored<TestType>(stream.context(), x);
      const auto without = stored<TestType>({side, 64}, x);
      // |x|^2 = <x, stored>, but for the rounding of the factor to fp16.
      const double length = stream.product(exact, exact);
      CHECK(stream.product(exact, with) == Approx(length).epsilon(1e-3));
      // Of the plain one too the factor that is unbiased, which at few bits costs more than the
      // norm's.
      const double factor = length / stream.product(exact, without);
      std::vector<double> error(64), other(64);
      for (std::size_t c = 0; c < 64; ++c) {
        error[c] = exact[c] - with[c];
        other[c] = exact[c] - factor * without[c];
      }
      shaped += stream.product(error, error);
      plain += stream.product(other, other);
    }
    CAPTURE(static_cast<int>(side), shaped, plain);
    CHECK(shaped < 0.95 * plain);
  }
}

TEMPLATE_TEST_CASE("the best of five steps costs less, and its factor is unbiased too", "", Bits<2>,
                   Bits<3>, Bits<4>) {
  using Once = Grid<TestType::value>;
  using Searched = ShapedGrid<ShapedGridSpec{.bits = TestType::value, .searches_step = true}>;
  for (const Side side : {Side::key, Side::value}) {
    const CalibratedStream stream(side, 64, 3);
    Random random(4);
    double searched = 0, once = 0;
    for (int i = 0; i < 200; ++i) {
      const auto x = random.normals(64);
      const std::vector<double> exact(x.begin(), x.end());
      const auto error_of = [&](const std::vector<double>& kept) {
        std::vector<double> error(64);
        for (std::size_t c = 0; c < 64; ++c) error[c] = exact[c] - kept[c];
        return stream.product(error, error);
      };
      const auto best = stored<Searched>(stream.context(), x);
      const double one = error_of(stored<Once>(stream.context(), x));
      CHECK(stream.product(exact, best) == Approx(stream.product(exact, exact)).epsilon(1e-3));
      // The one step is among the five, up to rounding.
      CHECK(error_of(best) < 1.001 * one);
      searched += error_of(best);
      once += one;
      CHECK(stored<Searched>({side, 64}, x) == stored<Once>({side, 64}, x));
    }
    CAPTURE(static_cast<int>(side), searched, once);
    CHECK(searched < 0.9 * once);
  }
}

TEST_CASE("finite input stays finite under a calibration") {
  for (const Side side : {Side::key, Side::value}) {
    const CalibratedStream stream(side, 64);
    for (const auto& x : hard_blocks(64)) {
      std::vector<std::byte> block(Grid<2>::record(side, 64).bytes);
      encode_block<Grid<2>>(stream.context(), x.data(), block.data());
      for (int t = 0; t < 64; ++t) {
        for (int c = 0; c < 64; ++c) {
          REQUIRE(std::isfinite(Grid<2>::decode(stream.context(), block.data(), t, c)));
        }
      }
    }
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Grid<2>>(Side::key, 64) == 0x2eab5f502a59e7ebull);
  CHECK(golden_hash<Grid<1>>(Side::value, 80) == 0x8e7fab9331041ca4ull);
  CHECK(golden_hash<Grid<3>>(Side::value, 80) == 0xee1ad20d15b44206ull);
  const CalibratedStream stream(Side::key, 64);
  std::vector<float> x = golden_values(64);
  for (int t = 0; t < 64; ++t) Grid<2>::to_basis(stream.context(), x.data() + t * 64);
  std::vector<std::byte> block(Grid<2>::record(Side::key, 64).bytes);
  encode_block<Grid<2>>(stream.context(), x.data(), block.data());
  CHECK(fnv1a(block) == 0x37ef1495660aa11cull);
  using Searched = ShapedGrid<ShapedGridSpec{.bits = 2, .searches_step = true}>;
  encode_block<Searched>(stream.context(), x.data(), block.data());
  CHECK(fnv1a(block) == 0xf5e5aecf283aa53full);
}
