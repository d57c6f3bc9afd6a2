// The error-shaped trellis: the path, what it decodes to, with a calibration and without.
#include "terse/quant/shaped_trellis.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "terse/quant/shaped.hpp"
#include "terse/testing/check_codec.hpp"

#include "tests/quant/calibrated_stream.hpp"
#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/random_calibration.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Bits>
using Coded = ShapedTrellis<ShapedTrellisSpec{.bits = Bits}>;
template <int Bits>
using Grid = ShapedGrid<ShapedGridSpec{.bits = Bits}>;

/// Codes `[width]` of the path of `u`.
template <int Bits>
std::vector<std::uint8_t> path(const std::vector<float>& u, const float* weight = nullptr,
                               const float* feedback = nullptr) {
  std::vector<std::uint8_t> codes(u.size()), history(4 * u.size());
  std::vector<float> passed(4 * u.size());
  Trellis<Bits>::find_path(u.data(), static_cast<int>(u.size()), weight, feedback, passed.data(),
                           static_cast<int>(u.size()), history.data(), codes.data());
  return codes;
}

/// Levels that codes stand for, by the trellis as a machine: it is in a state, the last two bits of
/// the path, and each code moves it on.
template <int Bits>
std::vector<double> walk(const std::vector<std::uint8_t>& codes) {
  std::vector<double> values(codes.size());
  unsigned last = 0, second_last = 0;
  for (std::size_t c = codes.size(); c-- > 0;) {
    const unsigned bit = codes[c] % 2, upper = codes[c] / 2;
    const unsigned subset = (bit != second_last ? 2 : 0) + last;
    values[c] = double{Trellis<Bits>::level(4 * upper + subset)};
    second_last = last;
    last = bit;
  }
  return values;
}

double cost(const std::vector<float>& u, const std::vector<float>& weight,
            const std::vector<double>& values) {
  double sum = 0;
  for (std::size_t c = 0; c < u.size(); ++c) {
    sum += double{weight[c]} * (double{u[c]} - values[c]) * (double{u[c]} - values[c]);
  }
  return sum;
}

/// No path of so few channels is cheaper than the one that is found.
template <int Bits>
void check_path(std::size_t width) {
  Random random(31);
  for (int i = 0; i < 20; ++i) {
    const auto u = random.normals(width);
    std::vector<float> weight(width);
    for (float& w : weight) w = static_cast<float>(0.2 + 3 * random.uniform());
    const double found = cost(u, weight, walk<Bits>(path<Bits>(u, weight.data())));
    double least = found + 1;
    std::vector<std::uint8_t> codes(width);
    for (unsigned all = 0; all < 1u << (Bits * width); ++all) {
      for (std::size_t c = 0; c < width; ++c) {
        codes[c] = static_cast<std::uint8_t>(all >> (c * Bits) & ((1u << Bits) - 1));
      }
      least = std::min(least, cost(u, weight, walk<Bits>(codes)));
    }
    CAPTURE(Bits, width, i, found, least);
    CHECK(found <= least * (1 + 1e-6));
  }
}

/// Every level is the mean of the normal numbers that paths give it and its mirror image.
template <int Bits>
void check_levels(double error) {
  constexpr std::size_t width = 256, levels = 2u << Bits;
  Random random(32);
  double sums[levels / 2] = {}, counts[levels / 2] = {}, squares = 0;
  constexpr int vectors = 800;
  for (int i = 0; i < vectors; ++i) {
    const auto u = random.normals(width);
    const auto values = walk<Bits>(path<Bits>(u));
    for (std::size_t c = 0; c < width; ++c) {
      std::size_t k = 0;
      while (std::fabs(std::fabs(values[c]) - double{Trellis<Bits>::level(
                                                  static_cast<unsigned>(levels / 2 + k))}) > 1e-6) {
        ++k;
      }
      sums[k] += values[c] < 0 ? -double{u[c]} : double{u[c]};
      counts[k] += 1;
      squares += (double{u[c]} - values[c]) * (double{u[c]} - values[c]);
    }
  }
  CAPTURE(Bits, squares / (vectors * width));
  CHECK(std::fabs(squares / (vectors * width) / error - 1) < 0.01);
  for (std::size_t k = 0; k < levels / 2; ++k) {
    CAPTURE(k, counts[k], sums[k] / counts[k]);
    const double deviation = std::sqrt(error / counts[k]);
    CHECK(std::fabs(sums[k] / counts[k] -
                    double{Trellis<Bits>::level(static_cast<unsigned>(levels / 2 + k))}) <
          0.003 + 4 * deviation);
  }
}

/// What a block decodes to, by a walk over its codes.
template <int Bits>
void check_decode(const CodecContext& context) {
  const Record r = Coded<Bits>::record(context.side, context.width);
  const auto width = static_cast<std::size_t>(context.width);
  const std::vector<float> x = golden_values(context.width);
  std::vector<std::byte> block(r.bytes);
  encode_block<Coded<Bits>>(context, x.data(), block.data());
  for (int t = 0; t < block_tokens; ++t) {
    std::vector<std::uint8_t> codes(width);
    for (int c = 0; c < context.width; ++c) {
      codes[static_cast<std::size_t>(c)] = static_cast<std::uint8_t>(
          load_code<Bits>(block.data(), code_place<Bits>(context.side, context.width, t, c)));
    }
    F16 factor;
    std::memcpy(&factor, block.data() + r.sections[1].offset_bytes + 2 * t, sizeof factor);
    const auto values = walk<Bits>(codes);
    for (int c = 0; c < context.width; ++c) {
      REQUIRE(Coded<Bits>::decode(context, block.data(), t, c) ==
              static_cast<float>(values[static_cast<std::size_t>(c)]) * to_float(factor));
    }
  }
}

/// Beside the shaped grid, in the metric of a calibration.
template <int Bits>
void check_shaping() {
  for (const Side side : {Side::key, Side::value}) {
    if (!Coded<Bits>::supports(side, 64).ok()) continue;  // keys of 1 bit
    const CalibratedStream stream(side, 64, 3);
    Random random(4);
    double trellis = 0, grid = 0;
    for (int i = 0; i < 200; ++i) {
      const auto x = random.normals(64);
      const std::vector<double> exact(x.begin(), x.end());
      const auto with = stored<Coded<Bits>>(stream.context(), x);
      const auto beside = stored<Grid<Bits>>(stream.context(), x);
      // |x|^2 = <x, stored>, but for the rounding of the factor to fp16.
      CHECK(stream.product(exact, with) == Approx(stream.product(exact, exact)).epsilon(1e-3));
      std::vector<double> error(64), other(64);
      for (std::size_t c = 0; c < 64; ++c) {
        error[c] = exact[c] - with[c];
        other[c] = exact[c] - beside[c];
      }
      trellis += stream.product(error, error);
      grid += stream.product(other, other);
    }
    CAPTURE(Bits, static_cast<int>(side), trellis, grid);
    CHECK(trellis < 0.85 * grid);
  }
}

/// Kernels that follow the path would not do as it does.
struct OwnDecode : ShapedTrellis<ShapedTrellisSpec{.bits = 2}> {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return -ShapedTrellis::decode(context, block, token, channel);
  }
};
static_assert(TrellisCodec<ShapedTrellis2::key_codec> && !TrellisCodec<OwnDecode>);

}  // namespace

TEST_CASE("records are as large as those of a grid of as many bits") {
  for (const int width : {64, 80, 128, 256}) {
    for (const Side side : {Side::key, Side::value}) {
      CHECK(Coded<2>::record(side, width).bytes == Grid<2>::record(side, width).bytes);
      CHECK(Coded<3>::record(side, width).bytes == Grid<3>::record(side, width).bytes);
      CHECK(Coded<4>::record(side, width).bytes == Grid<4>::record(side, width).bytes);
    }
  }
  CHECK(bits_per_element(Coded<2>::record(Side::key, 64), 64) == 2.25);
  CHECK(bits_per_element(Coded<1>::record(Side::value, 64), 64) == 1.25);
  CHECK(Coded<1>::supports(Side::value, 256).ok());
  CHECK(Coded<1>::supports(Side::key, 64).code == StatusCode::unsupported);
  CHECK(Coded<2>::supports(Side::key, 256).ok());
  CHECK(Coded<2>::supports(Side::value, 257).code == StatusCode::unsupported);
  // Kernels that know grids must not take the codes for one; those that share turns may.
  CHECK(HasDenseBasis<Coded<2>>);
  CHECK(UsesCalibration<Coded<2>>);
  CHECK_FALSE(AffineCodec<Coded<2>>);
}

TEST_CASE("no path is cheaper than the one that is found, where errors are not passed on") {
  check_path<1>(10);
  check_path<2>(6);
  check_path<3>(4);
  check_path<4>(3);
}

TEST_CASE("of equally cheap paths and equally near levels the lower ones are taken") {
  // Where nothing counts all paths are alike: that of zeros is taken, and of its levels, those of
  // the first subset, the nearest.
  const std::vector<float> nothing(3, 0.0f);
  const float middle = (Trellis<2>::level(0) + Trellis<2>::level(4)) / 2.0f;
  const std::vector<float> u{middle, std::nextafter(middle, 1.0f), -3.0f};
  CHECK(path<2>(u, nothing.data()) == std::vector<std::uint8_t>{0, 2, 0});
}

TEST_CASE("levels are the means of the normal numbers that paths give them") {
  check_levels<1>(0.317);
  check_levels<2>(0.0887);
  check_levels<3>(0.0243);
  check_levels<4>(0.00639);
}

TEST_CASE("without a calibration it is a rotated codec that keeps to the contract") {
  const auto check = [](const testing::Report& report) {
    INFO(report.failure);
    CHECK(report.ok());
  };
  check(testing::check_codec<Coded<2>>(64));
  check(testing::check_codec<Coded<2>>(80));
  check(testing::check_codec<Coded<3>>(80));
  check(testing::check_codec<Coded<4>>(128));
  check(testing::check_codec<Coded<2>>(1));
  check(testing::check_codec<Coded<1>>(Side::value, 80));
  CHECK(stays_finite<Coded<2>>(Side::key, 64));
}

TEST_CASE("errors on Gaussian data are less than those of grids, the norm kept") {
  // Fitted levels leave 0.0902 of 64 numbers at 2 bits; to keep the norm costs a little.
  const double one = gaussian_error<Coded<1>>(Side::value, 64, 10);
  const double two = gaussian_error<Coded<2>>(Side::key, 64, 10);
  const double three = gaussian_error<Coded<3>>(Side::value, 64, 10);
  const double four = gaussian_error<Coded<4>>(Side::key, 64, 10);
  CAPTURE(one, two, three, four);
  CHECK(one < 0.90 * gaussian_error<Grid<1>>(Side::value, 64, 10));
  CHECK(two < 0.78 * gaussian_error<Grid<2>>(Side::key, 64, 10));
  CHECK(three < 0.68 * gaussian_error<Grid<3>>(Side::value, 64, 10));
  CHECK(four < 0.60 * gaussian_error<Grid<4>>(Side::key, 64, 10));
}

TEST_CASE("what is decoded is what a walk over the trellis gives") {
  for (const Side side : {Side::key, Side::value}) {
    check_decode<2>({side, 80});
    check_decode<3>({side, 64});
    check_decode<4>({side, 64});
    const CalibratedStream stream(side, 64, 5);
    check_decode<2>(stream.context());
  }
  check_decode<1>({Side::value, 80});
}

TEST_CASE("errors cost less than those of the shaped grid, and the factor is unbiased") {
  check_shaping<1>();
  check_shaping<2>();
  check_shaping<3>();
  check_shaping<4>();
}

TEST_CASE("under a calibration finite input stays finite, and tokens move exactly") {
  for (const Side side : {Side::key, Side::value}) {
    const CalibratedStream stream(side, 64, 1);
    const CodecContext context = stream.context();
    std::vector<std::byte> block(Coded<2>::record(side, 64).bytes);
    for (const auto& x : hard_blocks(64)) {
      encode_block<Coded<2>>(context, x.data(), block.data());
      for (int t = 0; t < 64; ++t) {
        for (int c = 0; c < 64; ++c) {
          REQUIRE(std::isfinite(Coded<2>::decode(context, block.data(), t, c)));
        }
      }
    }
    std::vector<std::byte> moved(block.size(), std::byte{0xff});
    Coded<2>::copy_token(context, block.data(), 9, moved.data(), 60);
    for (int c = 0; c < 64; ++c) {
      CHECK(Coded<2>::decode(context, moved.data(), 60, c) ==
            Coded<2>::decode(context, block.data(), 9, c));
    }
    encode_block<Coded<2>>(context, std::vector<float>(64 * 64).data(), block.data());
    for (int c = 0; c < 64; ++c) CHECK(Coded<2>::decode(context, block.data(), 7, c) == 0.0f);
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Coded<2>>(Side::key, 64) == 0xfa04358f28d60ebaull);
  CHECK(golden_hash<Coded<1>>(Side::value, 80) == 0xa5cfe1c9d05da6efull);
  CHECK(golden_hash<Coded<3>>(Side::value, 80) == 0x6d470fe585a86b2bull);
  CHECK(golden_hash<Coded<4>>(Side::key, 64) == 0x5b3079082669a025ull);
  const CalibratedStream stream(Side::key, 64, 1);
  std::vector<float> x = golden_values(64);
  for (int t = 0; t < 64; ++t) Coded<2>::to_basis(stream.context(), x.data() + t * 64);
  std::vector<std::byte> block(Coded<2>::record(Side::key, 64).bytes);
  encode_block<Coded<2>>(stream.context(), x.data(), block.data());
  CHECK(fnv1a(block) == 0x856b7b3f3e165d82ull);
}
