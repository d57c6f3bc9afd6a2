// KVQuant's type of codes: outliers, ranges and codebooks against a slow formulation in doubles,
// the error on Gaussian data, hard input.
#include "terse/quant/kvquant.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "terse/testing/check_codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Bits>
using Plain = NonUniformGrid<NonUniformSpec{.bits = Bits, .outliers_per_thousand = 0}>;
template <int Bits>
using Sparse = NonUniformGrid<NonUniformSpec{.bits = Bits}>;

/// What the codec does, in doubles and without rounding parameters.
struct Slow {
  int length;                           // of a vector
  std::vector<std::vector<double>> x;   // [vector][number]
  std::vector<std::set<int>> outliers;  // [vector]
  std::vector<double> range, offset;    // [vector]
  std::vector<double> levels;

  Slow(Side side, int width, const std::vector<float>& block, int bits, int num_outliers,
       int rounds)
      : length(side == Side::key ? 64 : width) {
    const int vectors = side == Side::key ? width : 64;
    x.resize(static_cast<std::size_t>(vectors));
    for (int i = 0; i < 64 * width; ++i) {
      x[static_cast<std::size_t>(side == Side::key ? i % width : i / width)].push_back(
          block[static_cast<std::size_t>(i)]);
    }
    find_outliers(num_outliers);
    find_ranges();
    fit(1 << bits, rounds);
  }

  void find_outliers(int count) {
    std::vector<std::tuple<double, std::size_t, int>> all;
    for (std::size_t i = 0; i < x.size(); ++i) {
      double mean = 0, squares = 0;
      for (const double v : x[i]) mean += v / length;
      for (const double v : x[i]) squares += (v - mean) * (v - mean) / length;
      for (int k = 0; k < length; ++k) {
        const double v = x[i][static_cast<std::size_t>(k)];
        all.emplace_back(-std::fabs(v - mean) / std::sqrt(squares), i, k);
      }
    }
    std::sort(all.begin(), all.end());
    outliers.resize(x.size());
    for (int n = 0; n < count; ++n) {
      const auto& [distance, i, k] = all[static_cast<std::size_t>(n)];
      outliers[i].insert(k);
    }
  }
  void find_ranges() {
    for (std::size_t i = 0; i < x.size(); ++i) {
      double low = 1e300, high = -1e300;
      for (int k = 0; k < length; ++k) {
        if (outliers[i].count(k) != 0) continue;
        low = std::min(low, x[i][static_cast<std::size_t>(k)]);
        high = std::max(high, x[i][static_cast<std::size_t>(k)]);
      }
      range.push_back((high - low) / 2);
      offset.push_back((high + low) / 2);
    }
  }
  [[nodiscard]] std::size_t code_of(double u) const {
    std::size_t best = 0;
    for (std::size_t l = 1; l < levels.size(); ++l) {
      if (std::fabs(u - levels[l]) < std::fabs(u - levels[best])) best = l;
    }
    return best;
  }
  [[nodiscard]] double unit(std::size_t i, int k) const {
    return (x[i][static_cast<std::size_t>(k)] - offset[i]) / range[i];
  }
  void fit(int n, int rounds) {
    for (int l = 0; l < n; ++l) levels.push_back(-1 + (2 * l + 1.0) / n);
    for (int round = 0; round < rounds; ++round) {
      std::vector<double> sums(levels.size()), weights(levels.size());
      for (std::size_t i = 0; i < x.size(); ++i) {
        for (int k = 0; k < length; ++k) {
          if (outliers[i].count(k) != 0) continue;
          const std::size_t code = code_of(unit(i, k));
          sums[code] += range[i] * range[i] * unit(i, k);
          weights[code] += range[i] * range[i];
        }
      }
      for (std::size_t l = 0; l < levels.size(); ++l) levels[l] = sums[l] / weights[l];
    }
  }
};

/// Numbers of which some stand out, in channels of different sizes and means.
std::vector<float> spiky_block(int width, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x = random.normals(std::size_t{64} * static_cast<std::size_t>(width));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto channel = i % static_cast<std::size_t>(width);
    x[i] = x[i] * (1.0f + static_cast<float>(channel % 5)) + static_cast<float>(channel % 3);
    if (random.below(150) == 0) x[i] *= 6.0f;
  }
  return x;
}

float half_at(const std::vector<std::byte>& bytes, const Record& r, int section, int i) {
  return detail::load_half(bytes.data() + r.sections[section].offset_bytes, i);
}

template <int Bits>
void check_against_slow(Side side, int width) {
  const auto x = spiky_block(width, 40);
  CodecBlock<Sparse<Bits>> block(side, width);
  block.encode(x);
  const auto y = block.decode();
  const Record r = Sparse<Bits>::record(side, width);
  const Slow slow(side, width, x, Bits, Sparse<Bits>::num_outliers(width), 10);
  for (int l = 0; l < 1 << Bits; ++l) {
    CAPTURE(Bits, l);
    CHECK(std::fabs(half_at(block.bytes(), r, 1, l) - slow.levels[static_cast<std::size_t>(l)]) <
          4e-3);
  }
  int agree = 0, exact = 0;
  for (std::size_t i = 0; i < slow.x.size(); ++i) {
    CHECK(std::fabs(half_at(block.bytes(), r, 2, static_cast<int>(i)) / slow.range[i] - 1) < 6e-4);
    CHECK(std::fabs(half_at(block.bytes(), r, 3, static_cast<int>(i)) - slow.offset[i]) <
          1e-3 * (std::fabs(slow.offset[i]) + 1e-3));
    for (int k = 0; k < slow.length; ++k) {
      const float decoded = y[side == Side::key ? block.index(k, static_cast<int>(i))
                                                : block.index(static_cast<int>(i), k)];
      const auto number = slow.x[i][static_cast<std::size_t>(k)];
      if (slow.outliers[i].count(k) != 0) {
        CHECK(decoded == to_float(to_f16(static_cast<float>(number))));
        ++exact;
        continue;
      }
      const double expected =
          slow.levels[slow.code_of(slow.unit(i, k))] * slow.range[i] + slow.offset[i];
      agree += std::fabs(decoded - expected) < 0.01 * slow.range[i] ? 1 : 0;
    }
  }
  CHECK(exact == Sparse<Bits>::num_outliers(width));
  CAPTURE(Bits, width, agree);
  CHECK(agree > (64 * width - exact) * 98 / 100);
}

/// Mean and variance of decoded numbers in units of their vectors' ranges.
template <bool Keeps>
std::pair<double, double> spread(const std::vector<float>& x) {
  using C = NonUniformGrid<NonUniformSpec{.bits = 2, .keeps_spread = Keeps}>;
  CodecBlock<C> block(Side::value, 64);
  block.encode(x);
  const auto y = block.decode();
  const Slow slow(Side::value, 64, x, 2, C::num_outliers(64), 0);
  double count = 0, sum = 0, squares = 0;
  for (std::size_t t = 0; t < 64; ++t) {
    for (int c = 0; c < 64; ++c) {
      if (slow.outliers[t].count(c) != 0) continue;
      const double u = (y[block.index(static_cast<int>(t), c)] - slow.offset[t]) / slow.range[t];
      count += 1;
      sum += u;
      squares += u * u;
    }
  }
  return {sum / count, squares / count - sum / count * (sum / count)};
}

}  // namespace

TEST_CASE("room for one number in a hundred, and what a block of its own codebook costs") {
  CHECK(KVQuant3::key_codec::num_outliers(64) == 41);
  CHECK(KVQuant3::key_codec::num_outliers(128) == 82);
  const Record r = KVQuant3::key_codec::record(Side::key, 128);
  CHECK(r.sections[0].bytes == 64 * 128 * 3 / 8);
  CHECK(r.sections[1].bytes == 8 * sizeof(F16));
  CHECK(r.sections[2].bytes == 128 * sizeof(F16));
  CHECK(r.sections[3].bytes == 128 * sizeof(F16));
  CHECK(r.sections[4].bytes == 82 * 4);
  CHECK(KVQuant3::value_codec::record(Side::value, 128).sections[2].bytes == 64 * sizeof(F16));
  CHECK(bits_per_element(KVQuant3::key_codec::record(Side::key, 64), 64) == 4.0);
  CHECK(bits_per_element(KVQuant2::value_codec::record(Side::value, 64), 64) == 3.0);
  CHECK(KVQuant2::tail.sink_tokens == 1);
}

TEST_CASE("outliers, ranges, levels and codes are those of the slow formulation") {
  check_against_slow<2>(Side::key, 64);
  check_against_slow<3>(Side::value, 64);
  check_against_slow<3>(Side::key, 80);
  check_against_slow<4>(Side::value, 128);
}

TEST_CASE("outliers leave the others' ranges alone, and are exact") {
  Random random(41);
  std::vector<float> x = random.normals(64 * 64);
  for (const std::size_t i : {5u, 700u, 701u, 4095u}) x[i] = -900.0f;
  for (const Side side : {Side::key, Side::value}) {
    const auto y = round_trip<Sparse<3>>(side, 64, x);
    for (const std::size_t i : {5u, 700u, 701u, 4095u}) CHECK(y[i] == -900.0f);
    CHECK(mean_square_error(x, y) < 0.5 * mean_square_error(x, round_trip<Plain<3>>(side, 64, x)));
  }
}

TEST_CASE("fitted levels leave less error than even ones") {
  // Gaussian numbers gather in the middle of their range, where k-means puts its levels.
  const double fitted = gaussian_error<Plain<3>>(Side::value, 128, 4);
  const double even =
      gaussian_error<NonUniformGrid<NonUniformSpec{.outliers_per_thousand = 0, .rounds = 0}>>(
          Side::value, 128, 4);
  CAPTURE(fitted, even);
  CHECK(fitted < 0.92 * even);
  CHECK(gaussian_error<Sparse<3>>(Side::value, 128, 4) < fitted);
}

TEST_CASE("levels of two bits keep the spread of the numbers") {
  const auto x = spiky_block(64, 42);
  const auto [mean, variance] = spread<true>(x);
  const auto [fitted_mean, fitted_variance] = spread<false>(x);
  double count = 0, sum = 0, squares = 0;
  const Slow slow(Side::value, 64, x, 2, Sparse<2>::num_outliers(64), 0);
  for (std::size_t t = 0; t < 64; ++t) {
    for (int c = 0; c < 64; ++c) {
      if (slow.outliers[t].count(c) != 0) continue;
      count += 1;
      sum += slow.unit(t, c);
      squares += slow.unit(t, c) * slow.unit(t, c);
    }
  }
  const double own = squares / count - sum / count * (sum / count);
  CAPTURE(mean, sum / count, fitted_mean, variance, fitted_variance, own);
  CHECK(std::fabs(mean - sum / count) < 2e-3);
  CHECK(std::fabs(variance / own - 1) < 5e-3);
  CHECK(fitted_variance < 0.97 * own);
}

TEST_CASE("a block of few numbers, computed by hand") {
  // Values of channels 0 to 3: ranges 3, offsets 1, so u is -1, -1/3, 1/3 and 1 for all tokens.
  using C = NonUniformGrid<NonUniformSpec{.bits = 2, .outliers_per_thousand = 0}>;
  std::vector<float> x;
  for (int t = 0; t < 64; ++t) x.insert(x.end(), {-2.0f, 0.0f, 2.0f, 4.0f});
  CodecBlock<C> block(Side::value, 4);
  block.encode(x);
  const Record r = C::record(Side::value, 4);
  CHECK(half_at(block.bytes(), r, 1, 0) == -1.0f);
  CHECK(half_at(block.bytes(), r, 1, 1) == to_float(to_f16(-1.0f / 3)));
  CHECK(half_at(block.bytes(), r, 2, 63) == 3.0f);
  CHECK(half_at(block.bytes(), r, 3, 63) == 1.0f);
  CHECK(mean_square_error(x, block.decode()) < 1e-6);
}

TEST_CASE("finite input stays finite, zeros stay zeros, the contract is kept") {
  for (const int width : {20, 64, 80}) {
    for (const Side side : {Side::key, Side::value}) {
      CHECK(stays_finite<KVQuant2::key_codec>(side, width));
      CHECK(stays_finite<KVQuant3::key_codec>(side, width));
    }
  }
  const std::vector<float> zeros(64 * 80, 0.0f);
  CHECK(round_trip<KVQuant2::key_codec>(Side::key, 80, zeros) == zeros);
  for (const float constant : {3.25f, -1000.0f, 65504.0f}) {
    const std::vector<float> x(64 * 20, constant);
    CodecBlock<KVQuant3::key_codec> block(Side::value, 20);
    block.encode(x);
    CHECK(block.decode() == x);
    for (int t = 0; t < 64; ++t) {  // a vector without a range has the code in the middle
      CHECK(load_code<3>(block.bytes().data(), code_place<3>(Side::value, 20, t, 19)) == 3);
    }
  }
  for (const int width : {1, 20, 64, 80, 128, 256}) {
    for (const auto& report : {testing::check_codec<KVQuant2::key_codec>(width),
                               testing::check_codec<KVQuant3::value_codec>(width),
                               testing::check_codec<Plain<4>>(width)}) {
      INFO(report.failure);
      CHECK(report.ok());
    }
  }
  CHECK(supports_width<KVQuant3::key_codec>(Side::key, 257).code == StatusCode::unsupported);
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<KVQuant2::key_codec>(Side::key, 64) == 0x4160be92ffd57f72ull);
  CHECK(golden_hash<KVQuant3::value_codec>(Side::value, 80) == 0x139cc5bd1763fd6ull);
  CHECK(golden_hash<Plain<4>>(Side::key, 128) == 0x404ed8f33bc61213ull);
}
