// KVarN: scales and codes against the method's own formulation in doubles, the balance of a block,
// hard input.
#include "terse/quant/kvarn.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "terse/testing/check_codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <int Bits, PlainFormat Scales = PlainFormat::e4m3>
using Grid = DualAxisGrid<DualAxisSpec{.bits = Bits, .scales = Scales}>;

/// A block with rows and columns to scale, in doubles, as the paper's reference code goes about it:
/// scales are sums of logarithms.
struct Tile {
  int rows, columns;
  std::vector<double> x;                    // [row, column]
  std::vector<double> row_log, column_log;  // of the round that is kept
  double imbalance = 0;

  static double deviation(const std::vector<double>& v) {
    double mean = 0, squares = 0;
    for (const double a : v) mean += a / static_cast<double>(v.size());
    for (const double a : v) squares += (a - mean) * (a - mean);
    return std::sqrt(squares / (static_cast<double>(v.size()) - 1));
  }
  [[nodiscard]] double at(int r, int c, const std::vector<double>& row_logs,
                          const std::vector<double>& column_logs) const {
    const auto i = static_cast<std::size_t>(r), k = static_cast<std::size_t>(c);
    return x[i * static_cast<std::size_t>(columns) + k] / std::exp(row_logs[i]) /
           std::exp(column_logs[k]);
  }
  /// Of every column, or of every row, under these scales.
  [[nodiscard]] std::vector<double> deviations(bool of_columns, const std::vector<double>& row_logs,
                                               const std::vector<double>& column_logs) const {
    std::vector<double> result;
    for (int a = 0; a < (of_columns ? columns : rows); ++a) {
      std::vector<double> v;
      v.reserve(static_cast<std::size_t>(of_columns ? rows : columns));
      for (int b = 0; b < (of_columns ? rows : columns); ++b) {
        v.push_back(of_columns ? at(b, a, row_logs, column_logs) : at(a, b, row_logs, column_logs));
      }
      result.push_back(deviation(v));
    }
    return result;
  }
  [[nodiscard]] double imbalance_of(const std::vector<double>& row_logs,
                                    const std::vector<double>& column_logs) const {
    double sum = 0;
    for (const bool of_columns : {true, false}) {
      const auto d = deviations(of_columns, row_logs, column_logs);
      const auto [low, high] = std::minmax_element(d.begin(), d.end());
      sum += *high / std::max(*low, 1e-8);
    }
    return sum;
  }
  void balance(int rounds) {
    std::vector<double> r(static_cast<std::size_t>(rows)), c(static_cast<std::size_t>(columns));
    row_log = r;
    column_log = c;
    imbalance = imbalance_of(r, c);
    for (int round = 0; round < rounds; ++round) {
      for (const bool of_columns : {true, false}) {
        const auto d = deviations(of_columns, r, c);
        auto& logs = of_columns ? c : r;
        for (std::size_t i = 0; i < d.size(); ++i) {
          logs[i] = std::clamp(logs[i] + std::log(std::clamp(d[i], 1e-3, 1e3)), -0.3, 10.0);
        }
      }
      if (const double now = imbalance_of(r, c); now <= imbalance) {
        imbalance = now;
        row_log = r;
        column_log = c;
      }
    }
  }
  /// What row `r` decodes to: codes of the balanced row, step and zero times its scale, all times
  /// the column's. `step` is that of decoded numbers before the column's scale.
  std::vector<double> decoded_row(int r, int bits, double* step) const {
    const double own = std::exp(row_log[static_cast<std::size_t>(r)]);
    std::vector<double> v;
    v.reserve(static_cast<std::size_t>(columns));
    for (int c = 0; c < columns; ++c) v.push_back(at(r, c, row_log, column_log));
    const auto [low, high] = std::minmax_element(v.begin(), v.end());
    const double scale = std::max((*high - *low) / ((1 << bits) - 1), 1e-10), zero = *low;
    *step = scale * own;
    for (int c = 0; c < columns; ++c) {
      double& a = v[static_cast<std::size_t>(c)];
      a = (std::nearbyint((a - zero) / scale) * *step + zero * own) *
          std::exp(column_log[static_cast<std::size_t>(c)]);
    }
    return v;
  }
};

/// Tokens and channels of very different sizes, some of both with numbers that stand out.
std::vector<float> uneven_block(int width, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x = random.normals(std::size_t{64} * static_cast<std::size_t>(width));
  std::vector<float> of_token(64), of_channel(static_cast<std::size_t>(width));
  for (float& f : of_token) f = std::exp(0.7f * random.normal());
  for (float& f : of_channel) f = std::exp(0.7f * random.normal());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto w = static_cast<std::size_t>(width);
    x[i] = (x[i] + 0.3f) * 60.0f * of_token[i / w] * of_channel[i % w];
  }
  return x;
}

/// Keys: rows are channels. Values: rows are tokens.
Tile tile_of(Side side, int width, const std::vector<float>& x) {
  const bool is_key = side == Side::key;
  Tile tile{is_key ? width : 64, is_key ? 64 : width, {}, {}, {}};
  for (int r = 0; r < tile.rows; ++r) {
    for (int c = 0; c < tile.columns; ++c) {
      tile.x.push_back(x[static_cast<std::size_t>(is_key ? c * width + r : r * width + c)]);
    }
  }
  return tile;
}

TileBalance balance_of(Side side, int width, const std::vector<float>& x, int rounds) {
  TileBalance b;
  const TileAxis tokens = TileAxis::tokens(width), channels = TileAxis::channels(width);
  const bool is_key = side == Side::key;
  b.find(x.data(), is_key ? tokens : channels, is_key ? channels : tokens, rounds);
  return b;
}

/// Encodes a block and compares it with the method in doubles: nearly all numbers agree to the
/// rounding of parameters, the others, between two codes, to a code.
template <int Bits, PlainFormat Scales>
void check_codes(Side side, int width, double tolerance) {
  const std::vector<float> x = uneven_block(width, 31);
  CodecBlock<Grid<Bits, Scales>> block(side, width);
  block.encode_in_basis(x);
  const auto y = block.decode_in_basis();
  Tile tile = tile_of(side, width, x);
  tile.balance(8);
  int agree = 0;
  for (int r = 0; r < tile.rows; ++r) {
    double step = 0;
    const auto expected = tile.decoded_row(r, Bits, &step);
    for (int c = 0; c < tile.columns; ++c) {
      const double scaled_step = step * std::exp(tile.column_log[static_cast<std::size_t>(c)]);
      const double off = std::fabs(y[side == Side::key ? block.index(c, r) : block.index(r, c)] -
                                   expected[static_cast<std::size_t>(c)]);
      CAPTURE(Bits, r, c, off / scaled_step);
      REQUIRE(off < (1 + tolerance) * scaled_step);
      agree += off < tolerance * scaled_step ? 1 : 0;
    }
  }
  CAPTURE(Bits, width, agree);
  CHECK(agree > 64 * width * (Scales == PlainFormat::f16 ? 99 : 95) / 100);
}

}  // namespace

TEST_CASE("bits per number with steps, zeros and scales") {
  CHECK(bits_per_element(KVarN2::key_codec::record(Side::key, 64), 64) == 2.5);
  CHECK(bits_per_element(KVarN4K2V::key_codec::record(Side::key, 64), 64) == 4.5);
  CHECK(bits_per_element(KVarN4K2V::value_codec::record(Side::value, 64), 64) == 2.5);
  CHECK(bits_per_element(KVarN2::key_codec::record(Side::key, 128), 128) == 2.5);
  CHECK(bits_per_element(KVarN2::value_codec::record(Side::value, 128), 128) == 2.375);
  CHECK(bits_per_element(Grid<2, PlainFormat::f16>::record(Side::key, 64), 64) == 2.75);
  const Record keys = Grid<2>::record(Side::key, 128), values = Grid<2>::record(Side::value, 128);
  CHECK(keys.sections[1].bytes == 128);
  CHECK(keys.sections[2].bytes == 2 * 128);
  CHECK(keys.sections[3].bytes == 64);
  CHECK(values.sections[1].bytes == 64);
  CHECK(values.sections[2].bytes == 2 * 64);
  CHECK(values.sections[3].bytes == 128);
  CHECK(KVarN4K2V::tail.granule_tokens == 128);
  CHECK(KVarN4K2V::tail.sink_tokens == 16);
}

TEST_CASE("scales are those of the method in doubles, with logarithms") {
  for (const auto& [side, width] :
       {std::pair{Side::key, 64}, {Side::value, 64}, {Side::key, 20}, {Side::value, 128}}) {
    const auto x = uneven_block(width, 30);
    for (const int rounds : {0, 1, 3}) {
      const TileBalance b = balance_of(side, width, x, rounds);
      Tile tile = tile_of(side, width, x);
      tile.balance(rounds);
      CAPTURE(width, rounds);
      CHECK(std::fabs(b.imbalance / tile.imbalance - 1) < 1e-4);
      for (int i = 0; i < tile.columns; ++i) {
        REQUIRE(std::fabs(std::log(b.first.scale[i]) -
                          tile.column_log[static_cast<std::size_t>(i)]) < 1e-4);
      }
      for (int i = 0; i < tile.rows; ++i) {
        REQUIRE(std::fabs(std::log(b.second.scale[i]) - tile.row_log[static_cast<std::size_t>(i)]) <
                1e-4);
      }
    }
  }
}

TEST_CASE("more rounds never leave more imbalance, and uneven blocks become even") {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    for (const Side side : {Side::key, Side::value}) {
      const auto x = uneven_block(64, seed);
      float before = balance_of(side, 64, x, 0).imbalance;
      CHECK(before > 20);
      for (int rounds = 1; rounds <= 8; ++rounds) {
        const TileBalance b = balance_of(side, 64, x, rounds);
        CHECK(b.imbalance <= before);
        CHECK(b.imbalance_of_x >= b.imbalance);
        before = b.imbalance;
      }
      CHECK(before < 5.0f);
    }
  }
  // An even block gets no better after some rounds: the best of them is kept.
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u}) {
    const std::vector<float> x = Random(seed).normals(64 * 64);
    float before = balance_of(Side::key, 64, x, 0).imbalance;
    for (int rounds = 1; rounds <= 12; ++rounds) {
      const float now = balance_of(Side::key, 64, x, rounds).imbalance;
      CHECK(now <= before);
      before = now;
    }
  }
  // A channel of zeros cannot be scaled, and hinders no other.
  std::vector<float> x = uneven_block(64, 4);
  for (std::size_t i = 7; i < x.size(); i += 64) x[i] = 0.0f;
  const TileBalance b = balance_of(Side::value, 64, x, 8);
  CHECK(is_finite(b.imbalance));
  CHECK(b.imbalance < b.imbalance_of_x);
}

TEST_CASE("codes are those of the method in doubles") {
  check_codes<2, PlainFormat::f16>(Side::key, 64, 0.02);
  check_codes<4, PlainFormat::f16>(Side::key, 20, 0.02);
  check_codes<4, PlainFormat::f16>(Side::value, 64, 0.02);
  check_codes<3, PlainFormat::f16>(Side::value, 128, 0.02);
  check_codes<2, PlainFormat::e4m3>(Side::key, 64, 0.25);
}

TEST_CASE("scales along both axes halve the error of blocks that are uneven along both") {
  using Plain = DualAxisGrid<DualAxisSpec{.bits = 2, .rounds = 0}>;
  for (const Side side : {Side::key, Side::value}) {
    const auto x = uneven_block(64, 5);
    // Of a number in units of its token and channel: large ones must not hide the small.
    Tile tile = tile_of(side, 64, x);
    tile.balance(8);
    const auto error = [&](const std::vector<float>& y) {
      double sum = 0;
      for (int r = 0; r < 64; ++r) {
        for (int c = 0; c < 64; ++c) {
          const auto i = static_cast<std::size_t>(side == Side::key ? c * 64 + r : r * 64 + c);
          const double off =
              (double{y[i]} - x[i]) / std::exp(tile.row_log[static_cast<std::size_t>(r)] +
                                               tile.column_log[static_cast<std::size_t>(c)]);
          sum += off * off;
        }
      }
      return sum;
    };
    CHECK(error(round_trip<Grid<2>>(side, 64, x)) < 0.5 * error(round_trip<Plain>(side, 64, x)));
  }
}

TEST_CASE("a block of few numbers, computed by hand") {
  // Every token holds 0, 3, 6 ... 9 in turn: even along both axes, so that no scale is needed.
  using Flat = DualAxisGrid<DualAxisSpec{.bits = 2, .scales = PlainFormat::f16, .rounds = 0}>;
  std::vector<float> x(64 * 4);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>((i + i / 4) % 4) * 3 - 2;
  for (const Side side : {Side::key, Side::value}) {
    CodecBlock<Flat> block(side, 4);
    block.encode_in_basis(x);
    CHECK(block.decode_in_basis() == x);
    const Record r = Flat::record(side, 4);
    CHECK(detail::load_half(block.bytes().data() + r.sections[1].offset_bytes, 3) == 3.0f);
    CHECK(detail::load_half(block.bytes().data() + r.sections[2].offset_bytes, 3) == -2.0f);
    CHECK(detail::load_half(block.bytes().data() + r.sections[3].offset_bytes, 3) == 1.0f);
  }
}

TEST_CASE("finite input stays finite, zeros stay zeros, the contract is kept") {
  for (const int width : {20, 64, 80}) {
    for (const Side side : {Side::key, Side::value}) {
      CHECK(stays_finite<Grid<2>>(side, width));
      CHECK(stays_finite<Grid<4, PlainFormat::f16>>(side, width));
    }
  }
  for (const Side side : {Side::key, Side::value}) {
    std::vector<float> x = uneven_block(64, 6);  // one token larger than what is added up may be
    std::fill_n(x.begin() + 5 * 64, 64, 3e38f);
    CodecBlock<Grid<2>> block(side, 64);
    block.encode_in_basis(x);
    CHECK(all_finite(block.decode_in_basis()));
  }
  const std::vector<float> zeros(64 * 80, 0.0f);
  CHECK(round_trip<KVarN2::key_codec>(Side::key, 80, zeros) == zeros);
  for (const float constant : {3.2501f, -1000.3f, 65504.0f}) {
    const std::vector<float> x(64 * 20, constant);
    CodecBlock<Grid<2>> block(Side::key, 20);
    block.encode_in_basis(x);
    CHECK(mean_square_error(x, block.decode_in_basis()) < 1e-6 * constant * constant);
    for (std::size_t i = 0; i < codes_bytes<2>(Side::key, 20); ++i) REQUIRE(block.byte(i) == 0);
  }
  for (const int width : {1, 20, 64, 80, 128, 256}) {
    for (const auto& report : {testing::check_codec<KVarN4K2V::key_codec>(width),
                               testing::check_codec<KVarN2::value_codec>(width),
                               testing::check_codec<Grid<3, PlainFormat::f16>>(width)}) {
      INFO(report.failure);
      CHECK(report.ok());
    }
  }
  CHECK(supports_width<KVarN2::key_codec>(Side::key, 257).code == StatusCode::unsupported);
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<KVarN4K2V::key_codec>(Side::key, 64) == 0x405ed4c53a4fad5bull);
  CHECK(golden_hash<KVarN2::value_codec>(Side::value, 80) == 0x90ee50d7345d9c27ull);
  CHECK(golden_hash<Grid<3, PlainFormat::f16>>(Side::key, 128) == 0x2e12c4297548bee4ull);
}
