// The arithmetic shared by all codecs with a scale per group: error bounds, edges, determinism.
#include "terse/quant/affine_group.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "terse/quant/int4_rotated.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// Rounding of one number to fp16, relative.
constexpr double half_rounding = 0x1p-11;

constexpr AffineSpec min_max(int bits, int group,
                             Granularity granularity = Granularity::per_token) {
  return {.bits = bits, .granularity = granularity, .group = group, .rule = ScaleRule::min_max};
}
template <int Bits, int Group>
using MinMax = AffineGroup<min_max(Bits, Group)>;
template <int Bits, int Group>
using MinMaxPerChannel = AffineGroup<min_max(Bits, Group, Granularity::per_channel)>;
template <int Bits, ScaleRule Rule, int Group = 0>
using Symmetric = AffineGroup<AffineSpec{.bits = Bits, .group = Group, .rule = Rule}>;

struct Range {
  float low, high;
};

/// Smallest and largest number of the group that (token, channel) belongs to.
Range range_of(const AffineFormat& f, const std::vector<float>& x, int width, int token,
               int channel) {
  Range range{INFINITY, -INFINITY};
  const int own = affine_param_index(f, width, token, channel);
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < width; ++c) {
      if (affine_param_index(f, width, t, c) != own) continue;
      const float v = x[static_cast<std::size_t>(t * width + c)];
      range = {std::min(range.low, v), std::max(range.high, v)};
    }
  }
  return range;
}

/// Largest error of a min-max block over its bound: half a step, and the rounding of scale and
/// minimum to fp16.
template <class C>
double worst_min_max_error(Side side, int width, float offset) {
  Random random(11);
  auto x = random.normals(static_cast<std::size_t>(block_tokens * width));
  for (float& v : x) v += offset;
  const auto decoded = round_trip<C>(side, width, x);
  double worst = 0;
  for (int t = 0; t < block_tokens; t += 7) {
    for (int c = 0; c < width; c += 3) {
      const Range r = range_of(C::affine_format, x, width, t, c);
      const double span = double{r.high} - r.low;
      const double bound = span / C::top_code / 2 * (1 + half_rounding) +
                           half_rounding * (span + std::max(std::fabs(r.low), std::fabs(r.high)));
      const auto i = static_cast<std::size_t>(t * width + c);
      worst = std::max(worst, std::fabs(double{x[i]} - decoded[i]) / bound);
    }
  }
  return worst;
}

/// Largest error of a symmetric block in units of the covering step of its group.
template <class C>
double worst_symmetric_error(Side side, int width, double levels) {
  Random random(12);
  const auto x = random.normals(static_cast<std::size_t>(block_tokens * width));
  const auto decoded = round_trip<C>(side, width, x);
  double worst = 0;
  for (int t = 0; t < block_tokens; t += 7) {
    for (int c = 0; c < width; c += 3) {
      const Range r = range_of(C::affine_format, x, width, t, c);
      const double step = std::max(-double{r.low}, double{r.high}) / levels;
      const auto i = static_cast<std::size_t>(t * width + c);
      worst = std::max(worst, std::fabs(double{x[i]} - decoded[i]) / step);
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("min-max: every number is within half a step and the rounding of its parameters") {
  for (const Side side : {Side::key, Side::value}) {
    for (const float offset : {0.0f, 3.0f, -100.0f}) {
      for (const int width : {16, 20, 64, 80, 96}) {
        CAPTURE(side == Side::key, offset, width);
        CHECK(worst_min_max_error<MinMax<2, 32>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMax<4, 32>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMax<8, 0>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMaxPerChannel<2, 32>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMaxPerChannel<4, 16>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMaxPerChannel<8, 64>>(side, width, offset) <= 1);
      }
    }
  }
}

TEST_CASE("min-max uses its grid: the error bound is nearly reached") {
  CHECK(worst_min_max_error<MinMax<2, 32>>(Side::value, 64, 0) > 0.9);
  CHECK(worst_min_max_error<MinMaxPerChannel<4, 32>>(Side::key, 64, 0) > 0.9);
}

TEST_CASE("symmetric rules: every number is within its rule's share of a step") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : {20, 64, 80, 144}) {
      CAPTURE(side == Side::key, width);
      // Codes are found from the scale as stored, so half a step and the fp16 rounding of the scale
      // over 127 steps.
      CHECK((worst_symmetric_error<Symmetric<8, ScaleRule::abs_max>>(side, width, 127) <=
             0.5 + 127 * half_rounding));
      CHECK((worst_symmetric_error<Symmetric<8, ScaleRule::abs_max_wide, 32>>(side, width, 127) <=
             0.5 + 127 * half_rounding));
      // The side without the largest magnitude may be cut by a whole step.
      CHECK((worst_symmetric_error<Symmetric<4, ScaleRule::signed_max_wide, 32>>(side, width, 8) <=
             1.0 + 8 * half_rounding));
      // The step may be 0.6 of the covering one, which cuts the largest magnitudes.
      CHECK((worst_symmetric_error<Symmetric<4, ScaleRule::least_squares>>(side, width, 7.5) <=
             0.4 * 8.0));
    }
  }
}

TEST_CASE("mean squared errors on Gaussian data are those of the theory") {
  // Min-max over G numbers, Monte-Carlo: two digits are known, and two per cent allowed.
  constexpr double tolerance = 0.02;
  CHECK(gaussian_error<MinMax<2, 32>>(Side::value, 128, 40) == Approx(0.155).epsilon(tolerance));
  CHECK(gaussian_error<MinMax<4, 32>>(Side::value, 128, 40) == Approx(0.0061).epsilon(tolerance));
  CHECK(gaussian_error<MinMax<2, 64>>(Side::value, 128, 60) == Approx(0.202).epsilon(tolerance));
  CHECK(gaussian_error<MinMax<4, 64>>(Side::key, 128, 60) == Approx(0.0080).epsilon(tolerance));
  CHECK(gaussian_error<MinMax<4, 128>>(Side::key, 128, 80) == Approx(0.0100).epsilon(tolerance));
  const double per_channel = gaussian_error<MinMaxPerChannel<2, 32>>(Side::key, 128, 40);
  CHECK(per_channel == Approx(0.155).epsilon(tolerance));
}

TEST_CASE("offsets of parameters are those of the record's sections") {
  const auto check = []<class C>() {
    for (const Side side : {Side::key, Side::value}) {
      for (const int width : {1, 20, 64, 100, 128}) {
        const Record r = C::record(side, width);
        CHECK(C::scales_offset(side, width) == r.sections[1].offset_bytes);
        if (r.num_sections > 2) {
          CHECK(C::minima_offset(width, r.sections[1].offset_bytes) == r.sections[2].offset_bytes);
        }
      }
    }
  };
  check.operator()<AffineGroup<AffineSpec{.bits = 2, .group = 20}>>();
  check.operator()<
      AffineGroup<AffineSpec{.bits = 4, .granularity = Granularity::per_channel, .group = 32}>>();
  check.operator()<AffineGroup<AffineSpec{.bits = 8, .rule = ScaleRule::abs_max}>>();
}

TEST_CASE("constant groups decode to their constant") {
  for (const float v : {0.0f, 1.0f, -3.25f, 65504.0f, -65504.0f, 0.0999755859375f}) {
    const std::vector<float> x(64 * 64, v);
    CAPTURE(v);
    CHECK(round_trip<MinMax<2, 32>>(Side::value, 64, x) == x);
    CHECK(round_trip<MinMax<4, 32>>(Side::key, 64, x) == x);
    CHECK(round_trip<MinMaxPerChannel<2, 32>>(Side::key, 64, x) == x);
    CHECK(round_trip<MinMaxPerChannel<4, 64>>(Side::key, 64, x) == x);
  }
}

TEST_CASE("zeros decode to zeros under every rule") {
  const std::vector<float> zeros(64 * 80, 0.0f);
  for (const Side side : {Side::key, Side::value}) {
    CHECK(round_trip<MinMax<4, 32>>(side, 80, zeros) == zeros);
    CHECK((round_trip<Symmetric<8, ScaleRule::abs_max>>(side, 80, zeros) == zeros));
    CHECK((round_trip<Symmetric<8, ScaleRule::abs_max_wide, 32>>(side, 80, zeros) == zeros));
    CHECK((round_trip<Symmetric<4, ScaleRule::signed_max_wide, 32>>(side, 80, zeros) == zeros));
    CHECK((round_trip<Symmetric<4, ScaleRule::least_squares>>(side, 80, zeros) == zeros));
  }
}

TEST_CASE("groups without a step store the code of the centre") {
  const auto codes_are = []<class C>(std::type_identity<C>, float v, int byte) {
    CodecBlock<C> block(Side::key, 64);
    block.encode(std::vector<float>(64 * 64, v));
    const std::size_t bytes = C::record(Side::key, 64).sections[0].bytes;
    for (std::size_t i = 0; i < bytes; ++i) {
      if (block.byte(i) != byte) return false;
    }
    return true;
  };
  CHECK(codes_are(std::type_identity<MinMax<2, 32>>{}, 5.0f, 0x00));
  CHECK(codes_are(std::type_identity<MinMaxPerChannel<4, 32>>{}, -70000.0f, 0x00));
  CHECK(codes_are(std::type_identity<Symmetric<8, ScaleRule::abs_max>>{}, 0.0f, 0x80));
  CHECK(codes_are(std::type_identity<Symmetric<8, ScaleRule::abs_max>>{}, 1e-40f, 0x80));
  CHECK(codes_are(std::type_identity<Symmetric<8, ScaleRule::abs_max_wide, 32>>{}, 1e-40f, 0x80));
  CHECK(codes_are(std::type_identity<Symmetric<4, ScaleRule::signed_max_wide>>{}, 1e-40f, 0x88));
  CHECK(codes_are(std::type_identity<Symmetric<4, ScaleRule::least_squares>>{}, 0.0f, 0x77));
}

TEST_CASE("no finite input becomes infinite or NaN") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : {16, 20, 64}) {
      CAPTURE(side == Side::key, width);
      CHECK(stays_finite<MinMax<2, 32>>(side, width));
      CHECK(stays_finite<MinMax<4, 0>>(side, width));
      CHECK(stays_finite<MinMax<8, 16>>(side, width));
      CHECK(stays_finite<MinMaxPerChannel<2, 32>>(side, width));
      CHECK(stays_finite<MinMaxPerChannel<4, 64>>(side, width));
      CHECK((stays_finite<Symmetric<8, ScaleRule::abs_max>>(side, width)));
      CHECK((stays_finite<Symmetric<4, ScaleRule::abs_max, 16>>(side, width)));
      CHECK((stays_finite<Symmetric<8, ScaleRule::abs_max_wide, 32>>(side, width)));
      CHECK((stays_finite<Symmetric<4, ScaleRule::signed_max_wide, 32>>(side, width)));
      CHECK((stays_finite<Symmetric<2, ScaleRule::signed_max_wide>>(side, width)));
      CHECK((stays_finite<Symmetric<4, ScaleRule::least_squares>>(side, width)));
      CHECK((stays_finite<Symmetric<2, ScaleRule::least_squares, 32>>(side, width)));
    }
  }
}

TEST_CASE("differences above 65504 keep their ends") {
  std::vector<float> x(64 * 32, 0.0f);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = (i + i / 32) % 2 == 0 ? f16_max : -f16_max;
  }
  // 131008 over 3 or 15 steps fits fp16, so both ends come back to fp16 rounding.
  for (const auto& decoded : {round_trip<MinMax<2, 32>>(Side::value, 32, x),
                              round_trip<MinMax<4, 32>>(Side::value, 32, x),
                              round_trip<MinMaxPerChannel<2, 32>>(Side::key, 32, x)}) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(decoded[i] == Approx(x[i]).epsilon(2 * half_rounding));
    }
  }
}

TEST_CASE("codes are rounded to the nearest, ties to even") {
  // Minimum 0 and maximum 3 make the step of 2 bits exactly 1.
  std::vector<float> x(64 * 16, 0.0f);
  const float token[16] = {0.0f, 3.0f, 0.5f, 1.5f, 2.5f,  0.4999f, 0.5001f, 1.4999f,
                           1.0f, 2.0f, 0.1f, 2.9f, 2.51f, 2.4999f, 0.0f,    1.5001f};
  const float want[16] = {0, 3, 0, 2, 2, 0, 1, 1, 1, 2, 0, 3, 3, 2, 0, 2};
  for (int t = 0; t < 64; ++t) std::copy(token, token + 16, x.begin() + t * 16);
  const auto decoded = round_trip<MinMax<2, 0>>(Side::value, 16, x);
  for (std::size_t c = 0; c < 16; ++c) {
    CAPTURE(c, token[c]);
    CHECK(decoded[c] == want[c]);
  }
}

TEST_CASE("groups may end short and do not touch each other") {
  // Width 20 in groups of 16: the last four channels have a scale of their own.
  Random random(5);
  auto x = random.normals(64 * 20);
  const auto before = round_trip<MinMax<4, 16>>(Side::key, 20, x);
  for (std::size_t t = 0; t < 64; ++t) x[t * 20 + 17] = 500.0f;
  const auto after = round_trip<MinMax<4, 16>>(Side::key, 20, x);
  for (std::size_t t = 0; t < 64; ++t) {
    for (std::size_t c = 0; c < 16; ++c) REQUIRE(before[t * 20 + c] == after[t * 20 + c]);
  }
  CHECK(affine_groups(MinMax<4, 16>::affine_format, 20) == 2);
  CHECK(affine_params(MinMax<4, 16>::affine_format, 20) == 2 * 64);
  CHECK(affine_params(MinMaxPerChannel<4, 16>::affine_format, 20) == 4 * 20);
}

TEST_CASE("a token's place does not depend on the tokens around it") {
  using C = MinMax<4, 32>;
  Random random(6);
  const auto x = random.normals(64 * 80);
  CodecBlock<C> whole(Side::key, 80), reversed(Side::key, 80);
  whole.encode(x);
  for (int t = 63; t >= 0; --t) {
    C::encode_token(reversed.context(), x.data() + t * 80, t, reversed.bytes().data());
  }
  CHECK(whole.bytes() == reversed.bytes());
}

TEST_CASE("copy_token moves a token exactly and nothing else") {
  using C = MinMax<2, 32>;
  Random random(8);
  for (const Side side : {Side::key, Side::value}) {
    CodecBlock<C> from(side, 80), to(side, 80);
    from.encode(random.normals(64 * 80));
    to.encode(random.normals(64 * 80));
    const auto source = from.decode(), before = to.decode();
    C::copy_token(from.context(), from.bytes().data(), 50, to.bytes().data(), 17);
    const auto after = to.decode();
    for (int t = 0; t < 64; ++t) {
      for (int c = 0; c < 80; ++c) {
        const float want = t == 17 ? source[from.index(50, c)] : before[to.index(t, c)];
        REQUIRE(after[to.index(t, c)] == want);
      }
    }
  }
}

TEST_CASE("records hold codes, scales and minima at multiples of 16 bytes") {
  const Record r = MinMax<4, 32>::record(Side::value, 80);
  REQUIRE(r.num_sections == 3);
  CHECK(r.sections[0].bytes == 64 * 80 / 2);
  CHECK(r.sections[1].offset_bytes == 64 * 80 / 2);
  CHECK(r.sections[1].bytes == 3 * 64 * 2);
  CHECK(r.sections[2].offset_bytes == 64 * 80 / 2 + 3 * 64 * 2);
  CHECK(r.bytes == (64 * 80 / 2 + 2 * 3 * 64 * 2 + 127) / 128 * 128);
  CHECK((Symmetric<4, ScaleRule::least_squares>::record(Side::key, 64).num_sections == 2));
}

TEST_CASE("least squares is never worse than the covering step") {
  using C = Symmetric<4, ScaleRule::least_squares>;
  constexpr int width = 64;
  Random random(9);
  for (int round = 0; round < 20; ++round) {
    auto x = random.normals(64 * width);
    if (round % 2 == 1) {
      for (std::size_t i = 0; i < x.size(); i += 13) x[i] *= 20.0f;
    }
    const auto decoded = round_trip<C>(Side::key, width, x);
    for (std::size_t t = 0; t < 64; ++t) {
      float peak = 0;
      for (std::size_t c = 0; c < width; ++c) peak = std::max(peak, std::fabs(x[t * width + c]));
      const double step = peak / 7.5;
      double covering = 0, own = 0, energy = 0;
      for (std::size_t c = 0; c < width; ++c) {
        const double v = x[t * width + c];
        const double code = std::clamp(std::nearbyint(v / step + 7.5), 0.0, 15.0);
        const double error = v - (code - 7.5) * step;
        covering += error * error;
        own += (v - decoded[t * width + c]) * (v - decoded[t * width + c]);
        energy += v * v;
      }
      // The factor is stored in fp16, which may add its rounding squared.
      REQUIRE(own <= covering + energy * half_rounding * half_rounding * 1.1);
    }
  }
}

TEST_CASE("the least-squares factor is that of its codes") {
  using C = Symmetric<4, ScaleRule::least_squares>;
  Random random(10);
  const auto x = random.normals(64 * 64);
  CodecBlock<C> block(Side::key, 64);
  block.encode(x);
  const Record r = C::record(Side::key, 64);
  for (int t = 0; t < 64; ++t) {
    double dot = 0, norm = 0;
    for (int c = 0; c < 64; ++c) {
      const double level =
          load_code<4>(block.bytes().data(), code_place<4>(Side::key, 64, t, c)) - 7.5;
      dot += level * x[block.index(t, c)];
      norm += level * level;
    }
    F16 stored;
    std::memcpy(&stored, block.bytes().data() + r.sections[1].offset_bytes + 2 * t, 2);
    REQUIRE(to_float(stored) == Approx(dot / norm).epsilon(half_rounding));
  }
}

TEST_CASE("decode multiplies and adds in one rounding") {
  // code 1, scale 1 + 2^-10, minimum 2^-14: a rounded product would lose nothing here, so take
  // scale * 3 whose product needs 13 bits and a minimum far below it.
  using C = MinMax<2, 0>;
  CodecBlock<C> block(Side::value, 16);
  const Record r = C::record(Side::value, 16);
  const F16 scale = to_f16(1.0009765625f), minimum = to_f16(6.1e-5f);
  store_code<2>(block.bytes().data(), code_place<2>(Side::value, 16, 0, 0), 3);
  std::memcpy(block.bytes().data() + r.sections[1].offset_bytes, &scale, 2);
  std::memcpy(block.bytes().data() + r.sections[2].offset_bytes, &minimum, 2);
  CHECK(C::decode(block.context(), block.bytes().data(), 0, 0) ==
        std::fmaf(3.0f, to_float(scale), to_float(minimum)));
}
