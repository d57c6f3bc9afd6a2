// The arithmetic shared by all codecs with a scale per group: error bounds, edges, determinism.
#include "terse/quant/affine_group.hpp"

#include <algorithm>
#include <array>
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

/// Numbers of a block `[64, width]` that steps are searched for: bell-shaped, or with outliers.
std::vector<float> numbers_to_search(Random& random, int width, bool has_outliers) {
  auto x = random.normals(static_cast<std::size_t>(block_tokens * width));
  for (std::size_t i = 0; has_outliers && i < x.size(); i += 13) x[i] *= 20.0f;
  return x;
}

/// a * b, which no compiler can fuse with a sum.
float plain_product(float a, float b) {
  volatile float product = a * b;
  return product;
}

/// A group of numbers as some step stores it: codes as they are defined, sums in double precision.
struct PlainFit {
  std::vector<int> codes;
  double dot = 0, norm = 0;
  [[nodiscard]] double gain() const { return dot * dot / norm; }
};

PlainFit plain_fit(const float* x, int count, float step, int bits) {
  const double top = (1 << bits) - 1, centre = top / 2;
  PlainFit fit;
  for (int i = 0; i < count; ++i) {
    const float steps = plain_product(x[i], 1.0f / step);
    const double code =
        std::clamp(std::nearbyint(double{steps + static_cast<float>(centre)}), 0.0, top);
    fit.codes.push_back(static_cast<int>(code));
    fit.dot += x[i] * (code - centre);
    fit.norm += (code - centre) * (code - centre);
  }
  return fit;
}

std::vector<PlainFit> plain_fits(const float* x, int count, int bits) {
  float peak = 0;
  for (int i = 0; i < count; ++i) peak = std::max(peak, std::fabs(x[i]));
  std::vector<PlainFit> fits;
  for (const float fraction : {1.0f, 0.92f, 0.84f, 0.76f, 0.68f, 0.6f}) {
    const float covering = peak / (static_cast<float>((1 << bits) - 1) / 2);
    fits.push_back(plain_fit(x, count, covering * fraction, bits));
  }
  return fits;
}

/// Groups of a block whose stored codes and factor are none that a plain search could end with.
template <class C>
int groups_unlike_plain_search(Side side, int width, const std::vector<float>& x) {
  constexpr AffineFormat f = C::affine_format;
  CodecBlock<C> block(side, width);
  block.encode_in_basis(x);
  int unlike = 0;
  for (int t = 0; t < block_tokens; ++t) {
    const int group = f.group == 0 ? width : f.group;
    for (int c = 0; c < width; c += group) {
      const int count = std::min(group, width - c);
      std::vector<int> codes;
      for (int i = 0; i < count; ++i) {
        codes.push_back(static_cast<int>(
            load_code<f.bits>(block.bytes().data(), code_place<f.bits>(side, width, t, c + i))));
      }
      const double factor = detail::load_half(block.bytes().data() + C::scales_offset(side, width),
                                              affine_param_index(f, width, t, c));
      const auto fits = plain_fits(&x[block.index(t, c)], count, f.bits);
      double best = 0;
      for (const PlainFit& fit : fits) best = std::max(best, fit.gain());
      // Sums in fp32 may take the second best where it is as good.
      const bool is_like = std::any_of(fits.begin(), fits.end(), [&](const PlainFit& fit) {
        return fit.codes == codes && fit.gain() >= best * (1 - 1e-5) &&
               std::fabs(factor - fit.dot / fit.norm) <= factor * (half_rounding + 1e-6);
      });
      unlike += is_like ? 0 : 1;
    }
  }
  return unlike;
}

/// The fit of a step as it is defined: 32 partial sums, then neighbours.
template <class C>
typename C::Fit defined_fit(const float* x, int count, float inverse) {
  constexpr auto top = static_cast<float>(C::top_code);
  float dot[32] = {}, norm[32] = {};
  for (int i = 0; i < count; ++i) {
    const float steps = plain_product(x[i], inverse);
    const float code = std::clamp(std::nearbyint(steps + top / 2), 0.0f, top);
    const float level = code - (top - code);
    dot[i % 32] += plain_product(x[i], level);
    norm[i % 32] += plain_product(level, level);
  }
  for (int apart = 1; apart < 32; apart *= 2) {
    for (int i = 0; i < 32; i += 2 * apart) {
      dot[i] += dot[i + apart];
      norm[i] += norm[i + apart];
    }
  }
  return {dot[0], norm[0]};
}

/// The same by `Lanes` threads that look at neighbours and then exchange sums.
template <class C, int Lanes>
typename C::Fit fit_by_lanes(const float* x, int count, float inverse) {
  constexpr int run = 32 / Lanes;
  std::array<typename C::Fit, Lanes> fits;
  for (std::size_t lane = 0; lane < Lanes; ++lane) {
    typename C::template PartialFits<run> own;
    for (int i = 0; i < count; ++i) {
      if (i % 32 / run == static_cast<int>(lane)) C::add_to_fit(x[i], inverse, own, i % run);
    }
    fits[lane] = C::sum_of(own);
  }
  for (std::size_t apart = 1; apart < Lanes; apart *= 2) {
    const auto before = fits;
    for (std::size_t lane = 0; lane < Lanes; ++lane) {
      fits[lane].dot += before[lane ^ apart].dot;
      fits[lane].norm += before[lane ^ apart].norm;
    }
  }
  return fits[Lanes - 1];
}

template <class Fit>
bool same_fit(const Fit& a, const Fit& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

/// Whether everybody finds the same fits of all candidate steps to `x [i * stride]`.
template <class C>
bool fits_are_as_defined(const std::vector<float>& x, std::size_t stride) {
  const auto count = static_cast<int>(x.size());
  std::vector<float> apart(x.size() * stride);
  for (std::size_t i = 0; i < x.size(); ++i) apart[i * stride] = x[i];
  const float peak = C::find_extremes(x.data(), 1, count).peak();
  typename C::Step steps[C::num_steps];
  for (int k = 0; k < C::num_steps; ++k) steps[k] = C::make_step(C::candidate_divisor(peak, k));
  typename C::Fit fits[C::num_steps];
  C::fit_steps(apart.data(), stride, count, steps, fits);
  for (int k = 0; k < C::num_steps; ++k) {
    const auto defined = defined_fit<C>(x.data(), count, steps[k].inverse);
    if (!same_fit(fits[k], defined) ||
        !same_fit(fit_by_lanes<C, 8>(x.data(), count, steps[k].inverse), defined) ||
        !same_fit(fit_by_lanes<C, 32>(x.data(), count, steps[k].inverse), defined)) {
      return false;
    }
  }
  return true;
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
        CHECK(worst_min_max_error<MinMax<3, 32>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMax<4, 32>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMax<8, 0>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMaxPerChannel<2, 32>>(side, width, offset) <= 1);
        CHECK(worst_min_max_error<MinMaxPerChannel<3, 64>>(side, width, offset) <= 1);
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
      CHECK((worst_symmetric_error<Symmetric<3, ScaleRule::abs_max, 16>>(side, width, 3) <= 1));
      CHECK((worst_symmetric_error<Symmetric<4, ScaleRule::least_squares>>(side, width, 7.5) <=
             0.4 * 8.0));
    }
  }
}

TEST_CASE("mean squared errors on Gaussian data are those of the theory") {
  // Min-max over G numbers, Monte-Carlo: two digits are known, and two per cent allowed.
  constexpr double tolerance = 0.02;
  CHECK(gaussian_error<MinMax<2, 32>>(Side::value, 128, 40) == Approx(0.155).epsilon(tolerance));
  CHECK(gaussian_error<MinMax<3, 32>>(Side::value, 128, 40) == Approx(0.0281).epsilon(tolerance));
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
    CHECK(round_trip<MinMax<3, 32>>(Side::value, 64, x) == x);
    CHECK(round_trip<MinMax<4, 32>>(Side::key, 64, x) == x);
    CHECK(round_trip<MinMaxPerChannel<2, 32>>(Side::key, 64, x) == x);
    CHECK(round_trip<MinMaxPerChannel<4, 64>>(Side::key, 64, x) == x);
  }
}

TEST_CASE("zeros decode to zeros under every rule") {
  const std::vector<float> zeros(64 * 80, 0.0f);
  for (const Side side : {Side::key, Side::value}) {
    CHECK((round_trip<Symmetric<3, ScaleRule::least_squares>>(side, 80, zeros) == zeros));
    CHECK(round_trip<MinMax<4, 32>>(side, 80, zeros) == zeros);
    CHECK((round_trip<Symmetric<8, ScaleRule::abs_max>>(side, 80, zeros) == zeros));
    CHECK((round_trip<Symmetric<8, ScaleRule::abs_max_wide, 32>>(side, 80, zeros) == zeros));
    CHECK((round_trip<Symmetric<4, ScaleRule::signed_max_wide, 32>>(side, 80, zeros) == zeros));
    CHECK((round_trip<Symmetric<4, ScaleRule::least_squares>>(side, 80, zeros) == zeros));
  }
}

TEST_CASE("groups without a step store the code of the centre, or the one above it") {
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
  CHECK(codes_are(std::type_identity<Symmetric<4, ScaleRule::least_squares>>{}, 0.0f, 0x88));
  CHECK(codes_are(std::type_identity<Symmetric<4, ScaleRule::least_squares>>{}, -1e-40f, 0x88));
  CHECK(codes_are(std::type_identity<Symmetric<2, ScaleRule::least_squares>>{}, 1e-40f, 0xaa));
}

TEST_CASE("no finite input becomes infinite or NaN") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : {16, 20, 64}) {
      CAPTURE(side == Side::key, width);
      CHECK(stays_finite<MinMax<2, 32>>(side, width));
      CHECK(stays_finite<MinMax<3, 32>>(side, width));
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
      CHECK((stays_finite<Symmetric<3, ScaleRule::signed_max_wide, 16>>(side, width)));
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
    const auto x = numbers_to_search(random, width, round % 2 == 1);
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

TEST_CASE("least squares stores what a plain search in double finds") {
  Random random(21);
  for (const int width : {20, 64, 80, 128, 256}) {
    for (const bool has_outliers : {false, true}) {
      const auto x = numbers_to_search(random, width, has_outliers);
      const auto unlike = [&]<class C>(std::type_identity<C>) {
        return groups_unlike_plain_search<C>(Side::key, width, x) +
               groups_unlike_plain_search<C>(Side::value, width, x);
      };
      CAPTURE(width, has_outliers);
      CHECK(unlike(std::type_identity<Symmetric<2, ScaleRule::least_squares>>{}) == 0);
      CHECK(unlike(std::type_identity<Symmetric<3, ScaleRule::least_squares>>{}) == 0);
      CHECK(unlike(std::type_identity<Symmetric<4, ScaleRule::least_squares>>{}) == 0);
      CHECK(unlike(std::type_identity<Symmetric<4, ScaleRule::least_squares, 16>>{}) == 0);
      CHECK(unlike(std::type_identity<Symmetric<8, ScaleRule::least_squares, 36>>{}) == 0);
    }
  }
}

TEST_CASE("the fit of a step is the same bits however many threads add it up") {
  using C = Symmetric<4, ScaleRule::least_squares>;
  Random random(22);
  int different = 0;
  for (int count = 1; count <= 300; ++count) {
    auto x = random.normals(static_cast<std::size_t>(count));
    const float peak = std::ldexp(4.0f + std::fabs(x[0]), count % 60 - 40);
    for (float& v : x) {
      // Zeros, numbers in the middle between two codes of a candidate, and others.
      const int kind = random.below(8);
      const float step = C::candidate_divisor(peak, random.below(C::num_steps));
      v = kind == 0  ? -0.0f
          : kind < 4 ? static_cast<float>(random.below(15) - 7) * step
                     : v * peak / 4.0f;
    }
    x.back() = peak;
    const auto stride = static_cast<std::size_t>(1 + count % 3);
    different += fits_are_as_defined<Symmetric<2, ScaleRule::least_squares>>(x, stride) ? 0 : 1;
    different += fits_are_as_defined<C>(x, stride) ? 0 : 1;
    different += fits_are_as_defined<Symmetric<8, ScaleRule::least_squares>>(x, stride) ? 0 : 1;
  }
  CHECK(different == 0);
}

TEST_CASE("numbers times a power of two have the same least-squares codes") {
  using C = Symmetric<4, ScaleRule::least_squares>;
  constexpr int width = 80;
  Random random(23);
  const auto x = numbers_to_search(random, width, false);
  CodecBlock<C> block(Side::value, width);
  block.encode(x);
  const std::size_t scales = C::scales_offset(Side::value, width);
  for (const float power : {0x1p-8f, 0.5f, 2.0f, 0x1p12f}) {
    auto scaled = x;
    for (float& v : scaled) v *= power;
    CodecBlock<C> other(Side::value, width);
    other.encode(scaled);
    CAPTURE(power);
    CHECK(std::memcmp(block.bytes().data(), other.bytes().data(), scales) == 0);
    for (int t = 0; t < block_tokens; ++t) {
      REQUIRE(detail::load_half(other.bytes().data() + scales, t) ==
              power * detail::load_half(block.bytes().data() + scales, t));
    }
  }
}

TEST_CASE("of equally good steps the first is taken") {
  // Every step gives two numbers of one magnitude the codes of both ends, which one factor fits.
  using C = Symmetric<4, ScaleRule::least_squares>;
  const float x[] = {3.0f, -3.0f};
  const auto group = C::find_group(C::find_extremes(x, 1, 2), x, 1, 2);
  CHECK(group.step.divisor == C::candidate_divisor(3.0f, 0));
  CHECK(to_float(group.scale) == to_float(to_f16(3.0f / 7.5f)));
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

TEST_CASE("codes of 1 bit are for values only") {
  using OneBit = AffineGroup<AffineSpec{.bits = 1, .rule = ScaleRule::least_squares}>;
  using TwoBits = AffineGroup<AffineSpec{.bits = 2, .rule = ScaleRule::least_squares}>;
  CHECK(supports_width<OneBit>(Side::value, 64).ok());
  CHECK(supports_width<OneBit>(Side::key, 64).code == StatusCode::unsupported);
  CHECK(supports_width<InBasis<OneBit, HadamardBasis<256>>>(Side::key, 64).code ==
        StatusCode::unsupported);
  CHECK(supports_width<TwoBits>(Side::key, 64).ok());
}
