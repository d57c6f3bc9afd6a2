// Planes: stored order, what is lost at which depth, and how deep is deep enough.
#include "terse/quant/planes.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "terse/quant/aligned_kv.hpp"
#include "terse/quant/plane_exponents.hpp"
#include "terse/quant/plane_plan.hpp"
#include "terse/testing/check_codec.hpp"

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

template <class C>
constexpr Side side_of = C::granularity == Granularity::per_channel ? Side::key : Side::value;

/// Numbers whose sizes differ a lot between channels and between tokens.
std::vector<float> uneven_values(int width) {
  Random random(11);
  std::vector<float> x = random.normals(static_cast<std::size_t>(block_tokens * width));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int token = static_cast<int>(i) / width, channel = static_cast<int>(i) % width;
    x[i] *= std::ldexp(1.0f, channel % 7 - 3 + token % 5);
  }
  return x;
}

/// `[run, element]` at a depth.
template <class C>
std::vector<float> at_depth(const CodecBlock<C>& block, int planes) {
  const int width = block.context().width, length = C::run_length(width);
  std::vector<float> out(static_cast<std::size_t>(C::runs(width) * length));
  for (int run = 0; run < C::runs(width); ++run) {
    C::decode_run(block.context(), block.bytes().data(), run, planes, out.data() + run * length);
  }
  return out;
}

/// What depths lose of a block, in units of what they may.
template <class C>
void check_depths(int width, const std::vector<float>& x, bool is_full) {
  CodecBlock<C> block(side_of<C>, width);
  block.encode(x);
  const std::vector<float> whole = at_depth(block, C::num_planes), decoded = block.decode();
  const int length = C::run_length(width);
  for (int run = 0; run < C::runs(width); ++run) {
    for (int i = 0; i < length; ++i) {
      const bool by_channel = C::granularity == Granularity::per_channel;
      const std::size_t at = by_channel ? block.index(i, run) : block.index(run, i);
      REQUIRE(whole[static_cast<std::size_t>(run * length + i)] == decoded[at]);
    }
  }
  for (int planes = 0; planes < C::num_planes; ++planes) {
    const std::vector<float> rough = at_depth(block, planes);
    double worst = 0;
    for (int run = 0; run < C::runs(width); ++run) {
      const double unit = C::run_unit(block.context(), block.bytes().data(), run);
      for (int i = 0; i < length; ++i) {
        const auto at = static_cast<std::size_t>(run * length + i);
        const double gap = std::fabs(double{rough[at]} - whole[at]);
        const double limit = unit * C::plane_error(planes);
        if (gap > limit * (1 + 1e-6)) FAIL("lost " << gap << " of " << limit << " at " << planes);
        worst = limit > 0 ? std::max(worst, gap / limit) : worst;
      }
    }
    if (is_full) CHECK(worst > 0.9);
  }
}

template <class P>
void check_policy() {
  using K = typename P::key_codec;
  using V = typename P::value_codec;
  for (const int width : {64, 80}) {
    check_depths<K>(width, uneven_values(width), true);
    check_depths<V>(width, uneven_values(width), true);
    for (const auto& x : hard_blocks(width)) {
      check_depths<K>(width, x, false);
      check_depths<V>(width, x, false);
    }
  }
  CHECK(stays_finite<K>(Side::key, 64));
  CHECK(stays_finite<V>(Side::value, 64));
}

}  // namespace

TEST_CASE("bits per element, parameters included") {
  CHECK(bits_per_element(AlignedKV::key_codec::record(Side::key, 128), 128) == 16.125);
  CHECK(bits_per_element(AlignedKV::value_codec::record(Side::value, 128), 128) == 16.125);
  CHECK(bits_per_element(AlignedInt8::key_codec::record(Side::key, 128), 128) == 8.5);
  CHECK(bits_per_element(AlignedInt4::value_codec::record(Side::value, 128), 128) == 4.25);
}

TEST_CASE("a depth loses no more than it may, and the bound is tight") {
  check_policy<AlignedKV>();
  check_policy<AlignedFixed16>();
  check_policy<AlignedInt8>();
  check_policy<AlignedInt4>();
}

TEST_CASE("planes of fp16 numbers lose nothing") {
  // Every finite number, the signs of zero among them.
  for (unsigned first = 0; first < 0x10000; first += 64 * 64) {
    CodecBlock<AlignedKV::key_codec> keys(Side::key, 64);
    CodecBlock<AlignedKV::value_codec> values(Side::value, 64);
    std::vector<float> x(64 * 64);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto bits = static_cast<std::uint16_t>(first + i);
      x[i] = (bits & 0x7c00) == 0x7c00 ? 0.0f : to_float(F16{bits});
    }
    keys.encode(x);
    values.encode(x);
    const auto same = [&](const std::vector<float>& y) {
      return std::equal(x.begin(), x.end(), y.begin(), [](float a, float b) {
        return a == b && std::signbit(a) == std::signbit(b);
      });
    };
    REQUIRE(same(keys.decode()));
    REQUIRE(same(values.decode()));
  }
}

TEST_CASE("the planes of an fp16 number are its bits, run after run") {
  using K = AlignedKV::key_codec;
  using V = AlignedKV::value_codec;
  const int width = 80;
  const std::vector<float> x = uneven_values(width);
  CodecBlock<K> keys(Side::key, width);
  CodecBlock<V> values(Side::value, width);
  keys.encode(x);
  values.encode(x);
  for (int t = 0; t < 64; ++t) {
    for (int c = 0; c < width; ++c) {
      const unsigned bits = to_f16(x[keys.index(t, c)]).bits;
      const auto check = [&](const auto& block, int run, int element, int length) {
        const int nibbles = run * length / 2 + element / 8 * 4 + element % 4;
        const int shift = element % 8 / 4 * 4;
        const auto at = [&](int offset) {
          return static_cast<unsigned>(block.byte(static_cast<std::size_t>(offset)));
        };
        REQUIRE(at(run * length + element) == bits >> 8);
        REQUIRE((at(64 * width + nibbles) >> shift & 15u) == ((bits >> 4 & 15u) ^ 8u));
        REQUIRE((at(96 * width + nibbles) >> shift & 15u) == ((bits & 15u) ^ 8u));
      };
      check(keys, c, t, 64);
      check(values, t, c, width);
    }
  }
  // Half its range stands for a plane that is not read, but zero for the first.
  float run[80];
  V::decode_run(values.context(), values.bytes().data(), 9, 1, run);
  CHECK(to_f16(run[5]).bits == ((to_f16(x[values.index(9, 5)]).bits & 0xff00) | 0x88));
  V::decode_run(values.context(), values.bytes().data(), 9, 2, run);
  CHECK(to_f16(run[5]).bits == ((to_f16(x[values.index(9, 5)]).bits & 0xfff0) | 0x8));
  V::decode_run(values.context(), values.bytes().data(), 9, 0, run);
  CHECK(to_f16(run[5]).bits == 0x88);
}

TEST_CASE("fixed-point numbers share a power of two and are rounded to it") {
  using K = AlignedFixed16::key_codec;
  const std::vector<float> x = uneven_values(64);
  CodecBlock<K> block(Side::key, 64);
  block.encode(x);
  const auto y = block.decode();
  for (int c = 0; c < 64; ++c) {
    double peak = 0;
    for (int t = 0; t < 64; ++t) peak = std::fmax(peak, std::fabs(double{x[block.index(t, c)]}));
    const double step = K::run_unit(block.context(), block.bytes().data(), c);
    int exponent = 0;
    CHECK(std::frexp(step, &exponent) == 0.5);
    // The finest step whose codes reach the peak.
    CHECK(peak / step < 32767.5);
    CHECK(peak / (step / 2) > 32767.5);
    for (int t = 0; t < 64; ++t) {
      const std::size_t i = block.index(t, c);
      REQUIRE(std::fabs(double{y[i]} - x[i]) <= step / 2);
      REQUIRE(std::remainder(double{y[i]}, step) == 0.0);
    }
  }
  // Zeros are in the middle of the range, which is flipped in every plane.
  CodecBlock<K> zeros(Side::key, 64);
  zeros.encode(std::vector<float>(64 * 64, 0.0f));
  CHECK(zeros.byte(5) == 0);
  CHECK(zeros.byte(64 * 64 + 5) == 0x88);
  // The largest code is one less than half the range, so this peak needs the next power.
  std::vector<float> edge(64 * 64, 0.0f);
  edge[0] = 32767.75f;
  edge[1] = 32767.25f;
  block.encode(edge);
  CHECK(K::run_unit(block.context(), block.bytes().data(), 0) == 2.0f);
  CHECK(K::run_unit(block.context(), block.bytes().data(), 1) == 1.0f);
  CHECK(block.decode()[0] == 32768.0f);
  CHECK(block.decode()[1] == 32767.0f);
}

TEST_CASE("affine planes hold the numbers of the plain codes") {
  const auto check = [&]<class Planes, AffineSpec Spec>() {
    const std::vector<float> x = uneven_values(96);
    REQUIRE(round_trip<Planes>(side_of<Planes>, 96, x) ==
            round_trip<AffineGroup<Spec>>(side_of<Planes>, 96, x));
  };
  constexpr Granularity by_channel = Granularity::per_channel;
  check.operator()<AlignedInt8::key_codec,
                   AffineSpec{.bits = 8, .granularity = by_channel, .group = 64}>();
  check.operator()<AlignedInt8::value_codec, AffineSpec{.bits = 8}>();
  check.operator()<AlignedInt4::key_codec,
                   AffineSpec{.bits = 4, .granularity = by_channel, .group = 64}>();
  check.operator()<AlignedInt4::value_codec, AffineSpec{.bits = 4}>();
}

TEST_CASE("planes keep the contract of codecs") {
  const auto check = [&]<class P>() {
    for (const int width : {64, 80}) {
      for (const testing::Report& report :
           {testing::check_codec<typename P::key_codec>(Side::key, width),
            testing::check_codec<typename P::value_codec>(Side::value, width)}) {
        INFO(report.failure);
        CHECK(report.ok());
        CHECK(report.checks > 0);
      }
    }
  };
  check.operator()<AlignedKV>();
  check.operator()<AlignedFixed16>();
  check.operator()<AlignedInt8>();
  check.operator()<AlignedInt4>();
}

TEST_CASE("widths and sides that planes do not serve") {
  CHECK(AlignedKV::key_codec::supports(Side::value, 64).code == StatusCode::unsupported);
  CHECK(AlignedKV::value_codec::supports(Side::key, 64).code == StatusCode::unsupported);
  CHECK(AlignedKV::value_codec::supports(Side::value, 72).code == StatusCode::unsupported);
  CHECK(AlignedKV::value_codec::supports(Side::value, 80).ok());
  CHECK(AlignedKV::key_codec::supports(Side::key, 72).ok());
}

TEST_CASE("the share of a channel keeps the sum of errors within the tolerance") {
  using C = AlignedKV::key_codec;
  Random random(5);
  for (const float tolerance : {0.0f, 1e-3f, 0.05f, 1.0f, 50.0f}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<float> weights = random.normals(96, 1e-3f);
      for (float& w : weights) w = std::fabs(w) * std::ldexp(1.0f, random.below(12) - 6);
      weights[3] = 0.0f;
      const float share = key_share<C>(weights.data(), 96, tolerance);
      double sum = 0;
      int read = 0, by_even_shares = 0;
      for (const float w : weights) {
        const int planes = planes_within<C>(w, share);
        sum += double{w} * C::plane_error(planes);
        read += planes;
        by_even_shares += planes_within<C>(w, tolerance / 96);
      }
      REQUIRE(sum <= tolerance * (1 + 1e-5));
      REQUIRE(read <= by_even_shares);
      if (tolerance == 0.05f) REQUIRE(read < by_even_shares);
      REQUIRE(planes_within<C>(weights[3], share) == 0);
    }
  }
}

TEST_CASE("exponents decide as the paper says") {
  using C = AlignedKV::key_codec;
  CHECK(planes_at_gap<C>(3, 1) == 3);
  CHECK(planes_at_gap<C>(4, 1) == 2);
  CHECK(planes_at_gap<C>(7, 1) == 2);
  CHECK(planes_at_gap<C>(8, 1) == 1);
  CHECK(planes_at_gap<C>(-9, 1) == 3);
  // Two queries: 1, 1/16, 1/256, 0 and 1/256, 1/256, 1/256, 1; channels of like size but the last.
  const float queries[] = {1.0f,        0.0625f,     0.00390625f, 0.0f,
                           0.00390625f, 0.00390625f, 0.00390625f, 1.0f};
  const std::uint8_t exponents[] = {15, 15, 15, 10};
  std::uint8_t planes[4];
  plan_keys_by_exponent<C>(queries, 1, 4, 1.0f, exponents, 0, planes);
  CHECK(std::vector<int>(planes, planes + 4) == std::vector<int>{3, 2, 1, 1});
  plan_keys_by_exponent<C>(queries, 2, 4, 1.0f, exponents, 0, planes);
  CHECK(std::vector<int>(planes, planes + 4) == std::vector<int>{3, 3, 3, 3});
  const float swapped[] = {queries[4], queries[5], queries[6], queries[7],
                           queries[0], queries[1], queries[2], queries[3]};
  plan_keys_by_exponent<C>(swapped, 2, 4, 1.0f, exponents, 0, planes);
  CHECK(std::vector<int>(planes, planes + 4) == std::vector<int>{3, 3, 3, 3});
  plan_keys_by_exponent<C>(queries, 1, 4, 1.0f, exponents, 1, planes);
  CHECK(std::vector<int>(planes, planes + 4) == std::vector<int>{3, 3, 2, 1});
  // An estimate of 1 (exponent 15, halved 14) with values up to exponent 17, and of 1/8 with 12.
  const float estimate[] = {1.0f, 0.125f};
  const std::uint8_t largest[] = {17, 12};
  CHECK(aligned_exponent(estimate, largest, 2) == 12);
  // Probabilities of 2^-7 have exponent 8: four below; 2^-11, eight.
  using V = AlignedKV::value_codec;
  CHECK(planes_of_value<V>(12, 0.0078125f, 0) == 2);
  CHECK(planes_of_value<V>(12, 0.0079f, 0) == 3);
  CHECK(planes_of_value<V>(12, 0.00048828125f, 0) == 1);
  CHECK(planes_of_value<V>(12, 0.00048828125f, 1) == 2);
}
