// Attention that reads planes as deep as it must: bounds of logits and outputs, bytes read.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "terse/quant/aligned_kv.hpp"

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/dominant_token.hpp"
#include "support/plane_readings.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

CacheConfig config(int max_tokens = 700) {
  return {.num_layers = 1,
          .num_query_heads = 6,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = max_tokens,
          .max_step_tokens = 64};
}

std::uint64_t key_bytes(const Attended& a) { return sum_of(a).keys; }
std::uint64_t value_bytes(const Attended& a) { return sum_of(a).values; }

/// Attention of the newest `rows`, whose queries fall by channels from `size` to 1/128 of it and
/// anew.
template <class D>
Attended read(const D& d, SequenceId s, int rows, const PlaneReading& planes, float size = 1.5f) {
  AttendParams params;
  params.planes = planes;
  const StepPart part{s, rows};
  std::vector<float> queries = query_rows(d.shape(), 5, d.length(s) - rows, rows);
  for (std::size_t i = 0; i < queries.size(); ++i) {
    queries[i] *= std::ldexp(size, -static_cast<int>(i / 2 % 8));
  }
  Attended out = run_attend(d.cache.layer(0), {&part, 1}, queries, Path::vectorised, params);
  REQUIRE(out.status.ok());
  return out;
}

/// NaN if there is one.
double largest_gap(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double gap = std::fabs(double{a[i]} - b[i]);
    if (!(gap <= most)) most = gap;
  }
  return most;
}

/// A block of keys or values through a codec, with sizes that differ a lot between channels.
template <class C>
std::vector<std::byte> uneven_block(Side side, int width, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> x = random.normals(static_cast<std::size_t>(block_tokens * width));
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] *= std::ldexp(1.0f, static_cast<int>(i) % width % 9 - 4);
  }
  std::vector<std::byte> block(C::record(side, width).bytes);
  encode_block<C>({side, width}, x.data(), block.data());
  return block;
}

template <class C>
void check_key_bound() {
  constexpr int width = 64, vectors = 5;
  const CodecContext context{Side::key, width};
  for (std::uint64_t seed = 1; seed < 9; ++seed) {
    const auto block = uneven_block<C>(Side::key, width, seed);
    Random random(seed + 100);
    const auto queries = random.normals(vectors * width, 0.125f);
    std::vector<float> whole(width * block_tokens), rough(whole.size()), scratch(width);
    cpu::decode_planes<C>(context, block.data(), whole.data());
    for (const float tolerance : {0.003f, 0.03f, 0.3f}) {
      const std::uint64_t bytes =
          cpu::detail::decode_keys<C>(context, block.data(), queries.data(), vectors, 0.125f,
                                      within(tolerance, 0), scratch.data(), rough.data());
      REQUIRE(bytes <= cpu::detail::whole_bytes<C>(Side::key, width));
      for (int v = 0; v < vectors; ++v) {
        for (int t = 0; t < block_tokens; ++t) {
          double gap = 0;
          for (int c = 0; c < width; ++c) {
            const auto at = static_cast<std::size_t>(c * block_tokens + t);
            // Signs of queries have no part in the plan, so they may be those of the errors.
            gap += std::fabs(double{queries[static_cast<std::size_t>(v * width + c)]} *
                             (double{rough[at]} - double{whole[at]}));
          }
          REQUIRE(gap <= tolerance * (1 + 1e-5));
        }
      }
    }
  }
}

template <class C>
void check_value_bound() {
  constexpr int width = 64, vectors = 3;
  const CodecContext context{Side::value, width};
  for (std::uint64_t seed = 1; seed < 9; ++seed) {
    const auto block = uneven_block<C>(Side::value, width, seed);
    // Probabilities that span many powers of two, in units of which the states' sums make one.
    Random random(seed + 50);
    std::vector<float> p = random.normals(vectors * block_tokens, 3.0f);
    cpu::SoftmaxState states[vectors];
    for (int v = 0; v < vectors; ++v) {
      states[v].max = 0.0f;
      for (int t = 0; t < block_tokens; ++t) {
        float& own = p[static_cast<std::size_t>(v * block_tokens + t)];
        own = std::exp(own);
        states[v].sum += own;
      }
    }
    double peak = 0;
    for (int t = 0; t < block_tokens; ++t) {
      peak = std::fmax(peak, double{C::run_unit(context, block.data(), t)} * C::plane_error(0));
    }
    std::vector<float> whole(width * block_tokens), rough(whole.size());
    cpu::decode_planes<C>(context, block.data(), whole.data());
    std::uint64_t before = cpu::detail::whole_bytes<C>(Side::value, width);
    for (const float tolerance : {0.003f, 0.03f, 0.3f}) {
      const std::uint64_t bytes =
          cpu::detail::decode_values<C>(context, block.data(), p.data(), states, vectors,
                                        block_tokens, within(0, tolerance), rough.data());
      REQUIRE(bytes <= before);
      before = bytes;
      for (int v = 0; v < vectors; ++v) {
        for (int c = 0; c < width; ++c) {
          double gap = 0;
          for (int t = 0; t < block_tokens; ++t) {
            const auto at = static_cast<std::size_t>(t * width + c);
            gap += double{p[static_cast<std::size_t>(v * block_tokens + t)]} / states[v].sum *
                   std::fabs(double{rough[at]} - double{whole[at]});
          }
          REQUIRE(gap <= tolerance * peak * (1 + 1e-5));
        }
      }
    }
    REQUIRE(before < cpu::detail::whole_bytes<C>(Side::value, width));
  }
}

}  // namespace

TEST_CASE("no logit is further from that of whole codes than the tolerance") {
  check_key_bound<AlignedKV::key_codec>();
  check_key_bound<AlignedFixed16::key_codec>();
  check_key_bound<AlignedInt8::key_codec>();
  check_key_bound<AlignedInt4::key_codec>();
}

TEST_CASE("no output is further from that of whole values than the tolerance") {
  check_value_bound<AlignedKV::value_codec>();
  check_value_bound<AlignedFixed16::value_codec>();
  check_value_bound<AlignedInt8::value_codec>();
  check_value_bound<AlignedInt4::value_codec>();
}

TEST_CASE("where all errors add up they come close to the tolerance and no further") {
  const DominantToken token;
  Driver<PagedLayout<>, AlignedKV> d(DominantToken::config());
  const SequenceId s = d.create();
  REQUIRE(token.fill(d, s).ok());
  const StepPart part{s, 1};
  const auto attend = [&](const PlaneReading& planes) {
    AttendParams params;
    params.planes = planes;
    return run_attend(d.cache.layer(0), {&part, 1}, token.query, Path::vectorised, params);
  };
  const Attended whole = attend({});
  for (const float tolerance : {0.003f, 0.01f, 0.05f, 0.2f}) {
    CAPTURE(tolerance);
    const double keys = largest_gap(attend(within(tolerance, 0)).lse_ln, whole.lse_ln);
    CHECK(keys <= tolerance * 1.001);
    CHECK(keys >= tolerance * 0.25);
    const Attended values = attend(within(0, tolerance));
    // Values are below 1; read nothing of, they would be off by 2184 units of 2^-11.
    CHECK(largest_gap(values.output, whole.output) <= tolerance * 2184 / 2048 * 1.001);
    if (tolerance > 0.1f) CHECK(value_bytes(values) < value_bytes(whole));
  }
}

TEST_CASE("read whole, planes of fp16 are the 16-bit cache") {
  Driver<PagedLayout<>, AlignedKV> planes(config());
  PolicyConfig<PolicyOf<Identity>> same_tail;
  same_tail.tail = AlignedKV::tail;
  Driver<PagedLayout<>, Identity> plain(config(), same_tail);
  const SequenceId s = planes.create();
  REQUIRE(plain.create() == s);
  REQUIRE(planes.fill(s, 600, 64).ok());
  REQUIRE(plain.fill(s, 600, 64).ok());
  for (const int rows : {1, 3, 12}) {
    const Attended whole = read(planes, s, rows, {});
    const Attended expected = read(plain, s, rows, {});
    CHECK(relative_l2(whole.output, expected.output) < 1e-5);
    CHECK(relative_l2(whole.lse_ln, expected.lse_ln) < 1e-5);
    // 9 sealed blocks of two units, each once.
    CHECK(key_bytes(whole) == 9 * 2 * (64 * 64 * 2 + 64));
    CHECK(value_bytes(whole) == 9 * 2 * (64 * 64 * 2 + 64));
  }
}

TEST_CASE("tolerances bound outputs and save bytes") {
  const auto check = [&]<class P>(double least_saved) {
    Driver<PagedLayout<>, P> d(config());
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 600, 64).ok());
    for (const int rows : {1, 12}) {
      const Attended whole = read(d, s, rows, {});
      const Attended exact = read(d, s, rows, within(0, 0));
      CHECK(relative_l2(exact.output, whole.output) < 1e-6);
      std::uint64_t before = key_bytes(whole) + value_bytes(whole);
      for (const float tolerance : {0.01f, 0.1f, 0.5f}) {
        CAPTURE(rows, tolerance);
        const Attended keys = read(d, s, rows, within(tolerance, 0));
        CHECK(largest_gap(keys.lse_ln, whole.lse_ln) <= tolerance + 1e-4);
        CHECK(value_bytes(keys) == value_bytes(whole));
        // Probabilities are off by a factor of exp(2 * tolerance) at most; values are below 5.
        CHECK(largest_gap(keys.output, whole.output) <= 5 * std::expm1(2 * tolerance));
        const Attended values = read(d, s, rows, within(0, tolerance));
        CHECK(largest_gap(values.lse_ln, whole.lse_ln) < 1e-5);
        CHECK(largest_gap(values.output, whole.output) <= 8 * tolerance);
        CHECK(key_bytes(values) == key_bytes(exact));
        const Attended both = read(d, s, rows, within(tolerance, tolerance));
        CHECK(key_bytes(both) == key_bytes(keys));
        CHECK(key_bytes(both) + value_bytes(both) <= before);
        before = key_bytes(both) + value_bytes(both);
      }
      CHECK(static_cast<double>(before) <
            (1 - least_saved) * static_cast<double>(key_bytes(whole) + value_bytes(whole)));
    }
  };
  check.operator()<AlignedKV>(0.45);
  check.operator()<AlignedFixed16>(0.45);
  check.operator()<AlignedInt8>(0.3);
  check.operator()<AlignedInt4>(0.1);
}

TEST_CASE("the rule of exponents, over splits of long sequences too") {
  Driver<PagedLayout<>, AlignedKV> d(config(2300));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 2200, 64).ok());
  const Attended whole = read(d, s, 2, {}, 12.0f);
  PlaneReading rule{.rule = PlaneRule::exponents};
  const Attended aligned = read(d, s, 2, rule, 12.0f);
  CHECK(relative_l2(aligned.output, whole.output) < 2e-3);
  CHECK(largest_gap(aligned.lse_ln, whole.lse_ln) < 5e-3);
  CHECK(10 * key_bytes(aligned) < 9 * key_bytes(whole));
  CHECK(value_bytes(aligned) < value_bytes(whole));
  rule.margin = 3;
  const Attended careful = read(d, s, 2, rule, 12.0f);
  CHECK(key_bytes(careful) > key_bytes(aligned));
  CHECK(value_bytes(careful) > value_bytes(aligned));
  CHECK(relative_l2(careful.output, whole.output) < relative_l2(aligned.output, whole.output));
}

TEST_CASE("what is wrong with a reading is said") {
  Driver<PagedLayout<>, AlignedInt8> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 200, 64).ok());
  const auto status = [&](const PlaneReading& planes) {
    AttendParams params;
    params.planes = planes;
    return d.attend(s, 1, Path::vectorised, params).status;
  };
  CHECK(status(within(-1, 0)).code == StatusCode::invalid_argument);
  CHECK(status(within(0, NAN)).code == StatusCode::invalid_argument);
  CHECK(status({PlaneRule::exponents, 0, 0, -1}).code == StatusCode::invalid_argument);
  CHECK(status({PlaneRule::exponents, 0, 0, 0}).code == StatusCode::unsupported);
  CHECK(status(within(0.1f, 0.1f)).ok());
  // Of latents a tolerance would bound something else.
  using P = Compose<Palu<PaluSpec{}>, AlignedKV>;
  CHECK(terse::detail::check_planes<P>(within(0.1f, 0.1f)).code == StatusCode::unsupported);
  CHECK(terse::detail::check_planes<P>({}).ok());
}
