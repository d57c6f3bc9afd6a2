#include "terse/check/safety_check.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "support/cache_fixture.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Cache = KVCache<ContiguousLayout, Schedule<Int8, Kivi4>>;
using Check = SafetyCheck<Cache>;

constexpr int tokens = 384, query_heads = 4, kv_heads = 2, dim = 64;
constexpr int group = query_heads / kv_heads;

std::size_t size(int count) { return static_cast<std::size_t>(count); }
constexpr LayerPlace places[] = {{0, 0}, {0, 1}, {1, 0}};  // int8, kivi-4, int8

CacheConfig config() {
  return {.num_layers = 3,
          .num_query_heads = query_heads,
          .num_kv_heads = kv_heads,
          .head_dim = dim,
          .layers = places};
}

Check make_check(const CheckSpec& spec = {.tokens = tokens}) {
  return std::move(*Check::create(config(), {}, spec));
}

struct Vectors {
  std::vector<float> q, k, v;

  explicit Vectors(std::uint64_t seed) {
    Random random(seed);
    q = random.normals(size(tokens * query_heads * dim));
    k = random.normals(size(tokens * kv_heads * dim));
    v = random.normals(size(tokens * kv_heads * dim));
  }
  Vectors with_key_bias(int head, int channel, float bias) const {
    Vectors changed = *this;
    for (int t = 0; t < tokens; ++t) changed.k[at(t, head, kv_heads, channel)] += bias;
    return changed;
  }
  static std::size_t at(int token, int head, int heads, int channel = 0) {
    return size((token * heads + head) * dim + channel);
  }
  CheckInputs inputs() const {
    return {HeadRows::dense(q.data(), Scalar::f32, query_heads, dim),
            HeadRows::dense(k.data(), Scalar::f32, kv_heads, dim),
            HeadRows::dense(v.data(), Scalar::f32, kv_heads, dim)};
  }
};

/// 8-bit codes with one fp16 factor per token and head, from their definition.
std::vector<float> through_int8(const std::vector<float>& x) {
  std::vector<float> decoded(x.size());
  for (std::size_t first = 0; first < x.size(); first += dim) {
    float peak = 0;
    for (int c = 0; c < dim; ++c) peak = std::fmax(peak, std::fabs(x[first + size(c)]));
    const float scale = to_float(to_f16_saturating(peak / 127));
    for (int c = 0; c < dim; ++c) {
      const float code = std::nearbyint(x[first + size(c)] / scale);
      decoded[first + size(c)] = scale * std::fmin(std::fmax(code, -127.0f), 127.0f);
    }
  }
  return decoded;
}

struct Plain {
  std::vector<double> logits, p, output;  // a sink is the last of the logits
};
Plain plain_attention(const Vectors& x, const std::vector<float>& keys,
                      const std::vector<float>& values, int row, int head,
                      const AttendParams& params) {
  Plain result;
  const int window = params.sliding_window_tokens;
  const int first = window > 0 ? row - window + 1 : 0;
  const int kv_head = head / group;
  for (int t = first; t <= row; ++t) {
    double logit = 0;
    for (int c = 0; c < dim; ++c) {
      logit += double{x.q[Vectors::at(row, head, query_heads, c)]} *
               double{keys[Vectors::at(t, kv_head, kv_heads, c)]};
    }
    logit *= params.softmax_scale > 0 ? double{params.softmax_scale} : 0.125;
    const double cap = params.logit_soft_cap;
    result.logits.push_back(cap > 0 ? cap * std::tanh(logit / cap) : logit);
  }
  if (params.sink_logits != nullptr) result.logits.push_back(params.sink_logits[head]);
  double sum = 0;
  for (const double l : result.logits) sum += std::exp(l);
  result.output.assign(dim, 0.0);
  for (std::size_t i = 0; i < result.logits.size(); ++i) {
    result.p.push_back(std::exp(result.logits[i]) / sum);
    const int t = first + static_cast<int>(i);
    if (t > row) continue;
    for (int c = 0; c < dim; ++c) {
      result.output[size(c)] += result.p[i] * double{values[Vectors::at(t, kv_head, kv_heads, c)]};
    }
  }
  return result;
}

/// What int8 loses, over all rows of the second half.
AttentionLoss plain_loss(const Vectors& x, const AttendParams& params) {
  const std::vector<float> keys = through_int8(x.k), values = through_int8(x.v);
  double norm = 0, output = 0, key = 0, value = 0, kl = 0, rows = 0, logit = 0, count = 0;
  for (int row = tokens / 2; row < tokens; ++row) {
    for (int head = 0; head < query_heads; ++head) {
      const Plain exact = plain_attention(x, x.k, x.v, row, head, params);
      const Plain both = plain_attention(x, keys, values, row, head, params);
      const Plain by_keys = plain_attention(x, keys, x.v, row, head, params);
      const Plain by_values = plain_attention(x, x.k, values, row, head, params);
      const auto square = [](double a) { return a * a; };
      for (int c = 0; c < dim; ++c) {
        norm += square(exact.output[size(c)]);
        output += square(both.output[size(c)] - exact.output[size(c)]);
        key += square(by_keys.output[size(c)] - exact.output[size(c)]);
        value += square(by_values.output[size(c)] - exact.output[size(c)]);
      }
      for (std::size_t i = 0; i < exact.p.size(); ++i) {
        kl += exact.p[i] * std::log(exact.p[i] / both.p[i]);
      }
      const std::size_t seen = exact.p.size() - (params.sink_logits != nullptr ? 1 : 0);
      double mean = 0;
      for (std::size_t i = 0; i < seen; ++i)
        mean += (both.logits[i] - exact.logits[i]) / static_cast<double>(seen);
      for (std::size_t i = 0; i < seen; ++i) {
        logit += square(both.logits[i] - exact.logits[i] - mean);
      }
      count += static_cast<double>(seen);
      rows += 1;
    }
  }
  return {.output_error = std::sqrt(output / norm),
          .key_error = std::sqrt(key / norm),
          .value_error = std::sqrt(value / norm),
          .logit_error = std::sqrt(logit / count),
          .attention_kl = kl / rows};
}

void check_loss(const AttentionLoss& found, const AttentionLoss& expected) {
  // cpu::attend is within 1e-5 of its codes' attention, whose errors are 0.01.
  CHECK(found.output_error == Approx(expected.output_error).epsilon(0.01));
  CHECK(found.key_error == Approx(expected.key_error).epsilon(1e-3));
  CHECK(found.value_error == Approx(expected.value_error).epsilon(1e-3));
  CHECK(found.logit_error == Approx(expected.logit_error).epsilon(1e-3));
  CHECK(found.attention_kl == Approx(expected.attention_kl).epsilon(1e-3));
}

}  // namespace

TEST_CASE("losses are those of plain arithmetic, and outputs those of decoding") {
  Check check = make_check({.tokens = tokens, .compared_rows = tokens});
  const Vectors plain(1), other(2), windowed(3);
  std::vector<float> output(plain.q.size());
  const auto to = MutableHeadRows::dense(output.data(), Scalar::f32, query_heads, dim);
  REQUIRE(check.attend(0, plain.inputs()).ok());
  REQUIRE(check.attend(1, other.inputs(), to).ok());
  const float sinks[] = {1.0f, -2.0f, 3.0f, 0.0f};
  const AttendParams params{.softmax_scale = 0.2f,
                            .logit_soft_cap = 3.0f,
                            .sliding_window_tokens = 100,
                            .sink_logits = sinks};
  REQUIRE(check.attend(2, windowed.inputs(), {}, params).ok());
  const auto report = check.report();
  REQUIRE(report.ok());
  check_loss(report->layers[0].loss, plain_loss(plain, {}));
  check_loss(report->layers[2].loss, plain_loss(windowed, params));
  CHECK(report->layers[0].loss.peak.ratio < 1.5);
  // Rows differ in what KIVI has them read decoded; errors of keys and values are independent.
  const AttentionLoss& kivi = report->layers[1].loss;
  CHECK(kivi.output_error == Approx(std::hypot(kivi.key_error, kivi.value_error)).epsilon(0.05));

  // The same tokens one block after another, as an engine decodes them.
  CacheConfig small = config();
  small.max_tokens = tokens;
  small.max_step_tokens = 64;
  CacheFixture<ContiguousLayout, Schedule<Int8, Kivi4>> d(small);
  const StepPart step[] = {{*d.cache.create_sequence(), 64}};
  std::vector<float> decoded;
  for (int t = 0; t < tokens; t += 64) {
    REQUIRE(d.cache.begin_step(step).ok());
    const auto from = [&](const std::vector<float>& x, int heads) {
      return HeadRows::dense(x.data() + Vectors::at(t, 0, heads), Scalar::f32, heads, dim);
    };
    for (const int layer : {0, 1, 2}) {
      const AppendInputs in{.keys = from(other.k, kv_heads), .values = from(other.v, kv_heads)};
      REQUIRE(d.cache.append(layer, in).ok());
    }
    const float* first = other.q.data() + Vectors::at(t, 0, query_heads);
    const std::vector<float> queries(first, first + 64 * query_heads * dim);
    REQUIRE(d.cache
                .visit_layer(1,
                             [&](const auto& ref) {
                               const Attended a = run_attend(ref, step, queries, Path::vectorised);
                               decoded.insert(decoded.end(), a.output.begin(), a.output.end());
                               return a.status;
                             })
                .ok());
    REQUIRE(d.cache.commit_step().ok());
  }
  CHECK(relative_l2(output, decoded) < 1e-6);
}

TEST_CASE("a large key bias is flagged where codes suffer from it, and only there") {
  const Vectors clean(4);
  const Vectors biased = clean.with_key_bias(1, 17, 300.0f);
  Check check = make_check();
  REQUIRE(check.attend(0, biased.inputs()).ok());
  REQUIRE(check.attend(1, biased.inputs()).ok());
  REQUIRE(check.attend(2, clean.inputs()).ok());
  const auto report = check.report();
  REQUIRE(report.ok());
  const LayerReport& flagged = report->layers[0];
  CHECK(flagged.risk == LayerRisk::key_peak);
  CHECK(flagged.loss.peak.kv_head == 1);
  CHECK(flagged.loss.peak.channel == 17);
  CHECK(flagged.loss.peak.ratio == Approx(300).epsilon(0.1));
  CHECK(report->layers[1].risk == LayerRisk::none);  // a zero point per channel takes it off
  CHECK(report->layers[1].loss.peak.ratio == flagged.loss.peak.ratio);
  CHECK(report->layers[2].risk == LayerRisk::none);
  CHECK(report->layers_at_risk == 1);
  CHECK_FALSE(report->is_safe);
  CHECK(flagged.share > 0.9);
  CHECK(flagged.share + report->layers[1].share + report->layers[2].share == Approx(1.0));
  char text[160];
  const std::size_t length = describe(0, flagged, text);
  CHECK(length == std::string(text).size());
  CHECK(std::string(text).find("layer 0") != std::string::npos);
  CHECK(std::string(text).find("channel 17 of KV head 1") != std::string::npos);
  char cut[8];
  CHECK(describe(0, flagged, cut) == 7);
  CHECK(std::string(cut) == "layer 0");
}

TEST_CASE("risks are told from limits and from what loses most") {
  const CheckLimits limits{.output_error = 0.5, .key_peak = 8};
  CHECK(risk_of({.output_error = 0.5, .key_error = 0.5}, limits) == LayerRisk::none);
  CHECK(risk_of({.output_error = 0.6, .key_error = 0.1, .value_error = 0.5}, limits) ==
        LayerRisk::values);
  CHECK(risk_of({.output_error = 0.6, .key_error = 0.5, .value_error = 0.1}, limits) ==
        LayerRisk::keys);
  AttentionLoss loss{.output_error = NAN};
  CHECK(risk_of(loss, limits) == LayerRisk::keys);
  loss.peak.ratio = 9;
  CHECK(risk_of(loss, limits) == LayerRisk::key_peak);
}

TEST_CASE("the expected divergence is the mean over rows, with its error") {
  Check check = make_check();
  const Vectors clean(5);
  for (const int layer : {0, 1, 2}) REQUIRE(check.attend(layer, clean.inputs()).ok());
  CHECK(check.report()->expected_kl.rows == 0);
  CHECK_FALSE(check.report()->is_safe);  // nobody knows
  const float exact[] = {0.0f, std::log(3.0f), 5.0f, 5.0f + std::log(3.0f)};
  const float same[] = {2.0f, 2.0f + std::log(3.0f), 1.0f, 1.0f + std::log(3.0f)};
  const float even[] = {0.0f, 0.0f, 7.0f, 7.0f};
  const double kl = 0.25 * std::log(0.5) + 0.75 * std::log(1.5);
  for (int i = 0; i < 8; ++i) REQUIRE(check.add_logits(exact, even, 2, 2).ok());
  CHECK(check.report()->expected_kl.mean == Approx(kl).epsilon(1e-6));
  CHECK(std::isnan(check.report()->expected_kl.standard_error));  // of one block
  for (int i = 0; i < 8; ++i) REQUIRE(check.add_logits(exact, same, 2, 2).ok());
  const auto report = check.report();
  CHECK(report->expected_kl.rows == 32);
  CHECK(report->expected_kl.mean == Approx(kl / 2).epsilon(1e-6));
  CHECK(report->expected_kl.standard_error == Approx(kl / 2).epsilon(1e-6));  // of 16 rows each
  CHECK_FALSE(report->is_safe);  // of 192 rows 160 are not known
  for (int i = 0; i < 80; ++i) REQUIRE(check.add_logits(exact, same, 2, 2).ok());
  CHECK(check.report()->is_safe);
  CHECK(std::isinf(divergence_of_logits(exact, std::vector<float>{0, -INFINITY}.data(), 2)));
  const float masked[] = {0.0f, -INFINITY};
  CHECK(divergence_of_logits(masked, masked, 2) == 0);
}

TEST_CASE("an expected divergence above its limit is not safe") {
  Check check = make_check({.tokens = tokens, .limits = {.expected_kl = 0.1}});
  const Vectors clean(5);
  for (const int layer : {0, 1, 2}) REQUIRE(check.attend(layer, clean.inputs()).ok());
  const float exact[] = {0.0f, std::log(3.0f)}, even[] = {0.0f, 0.0f};
  for (int i = 0; i < tokens / 2; ++i) REQUIRE(check.add_logits(exact, even, 1, 2).ok());
  CHECK(check.report()->layers_at_risk == 0);
  CHECK_FALSE(check.report()->is_safe);
}

TEST_CASE("losses that floats do not hold are no losses of zero") {
  Check check = make_check();
  const Vectors clean(7);
  Vectors silent = clean, huge = clean;
  silent.v.assign(silent.v.size(), 0.0f);
  for (float& q : huge.q) q *= 1e34f;
  for (float& k : huge.k) k *= 1e4f;
  REQUIRE(check.attend(0, silent.inputs()).ok());
  REQUIRE(check.attend(1, huge.inputs()).ok());
  REQUIRE(check.attend(2, clean.inputs()).ok());
  const auto report = check.report();
  REQUIRE(report.ok());
  CHECK(report->layers[0].loss.output_error == 0);
  CHECK(report->layers[0].risk == LayerRisk::none);
  CHECK(std::isfinite(report->layers[1].loss.attention_kl));
  CHECK(report->layers[1].loss.key_error > 0.1);
  CHECK(report->layers[1].risk != LayerRisk::none);
  CHECK(report->layers_at_risk == 1);
  const detail::LossSums nothing{.output_error = 1}, broken{.output = NAN};
  CHECK(std::isinf(nothing.loss().output_error));
  CHECK(std::isnan(broken.loss().output_error));
}

namespace {

/// Kernels read its codes as int8's; decoded one by one, keys are NaN.
struct Broken : Int8 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return context.side == Side::key ? NAN : Int8::decode(context, block, token, channel);
  }
};

}  // namespace

TEST_CASE("a codec that decodes to NaN is an error, not a layer without loss") {
  using OfBroken = SafetyCheck<KVCache<ContiguousLayout, Broken>>;
  CacheConfig one = config();
  one.num_layers = 1;
  one.layers = {};
  OfBroken check = std::move(*OfBroken::create(one, {}, {.tokens = tokens}));
  const Vectors clean(8);
  CHECK(check.attend(0, clean.inputs()).code == StatusCode::not_finite);
  CHECK(check.report().status().code == StatusCode::wrong_phase);
}

TEST_CASE("layers that share a slot are checked as the others are") {
  constexpr LayerPlace shared[] = {{0, 0}, {0, 0}};
  using OfInt8 = SafetyCheck<KVCache<ContiguousLayout, Int8>>;
  CacheConfig two = config();
  two.num_layers = 2;
  two.layers = shared;
  OfInt8 check = std::move(*OfInt8::create(two, {}, {.tokens = tokens}));
  const Vectors x(9);
  Vectors second = x;  // queries of its own
  second.q = Vectors(10).q;
  REQUIRE(check.attend(0, x.inputs()).ok());
  for (std::vector<float> Vectors::*member : {&Vectors::q, &Vectors::k, &Vectors::v}) {
    Vectors bad = second;
    (bad.*member)[1000] = NAN;
    CHECK(check.attend(1, bad.inputs()).code == StatusCode::not_finite);
  }
  REQUIRE(check.attend(1, second.inputs()).ok());
  OfInt8 alone = std::move(*OfInt8::create(two, {}, {.tokens = tokens}));
  REQUIRE(alone.attend(0, second.inputs()).ok());
  REQUIRE(alone.attend(1, second.inputs()).ok());
  CHECK(check.report()->layers[1].loss.output_error == alone.report()->layers[0].loss.output_error);
}

TEST_CASE("bad input has an error of its own") {
  const auto code = [](const CheckSpec& spec, const CacheConfig& c = config()) {
    return Check::create(c, {}, spec).status().code;
  };
  CHECK(code({.tokens = 127}) == StatusCode::invalid_argument);
  CHECK(code({.tokens = 65537}) == StatusCode::invalid_argument);
  CHECK(code({.tokens = tokens, .compared_rows = 0}) == StatusCode::invalid_argument);
  // KIVI keeps up to 128 tokens exact: the middle of 255 tokens sees nothing decoded.
  CHECK(Check::create(config(), {}, {.tokens = 255}).status().detail == 256);
  CacheConfig uneven = config();
  uneven.num_query_heads = 3;
  CHECK(code({.tokens = tokens}, uneven) == StatusCode::invalid_argument);

  Check check = make_check();
  const Vectors x(6);
  CHECK(check.attend(3, x.inputs()).code == StatusCode::invalid_argument);
  CHECK(check.attend(-1, x.inputs()).code == StatusCode::invalid_argument);
  for (HeadRows CheckInputs::*member :
       {&CheckInputs::queries, &CheckInputs::keys, &CheckInputs::values}) {
    CheckInputs in = x.inputs();
    (in.*member).data = nullptr;
    CHECK(check.attend(0, in).code == StatusCode::null_pointer);
    in = x.inputs();
    (in.*member).row_stride = dim - 1;
    CHECK(check.attend(0, in).code == StatusCode::invalid_argument);
    in = x.inputs();
    (in.*member).head_stride = dim - 1;
    CHECK(check.attend(0, in).code == StatusCode::invalid_argument);
  }
  std::vector<float> output(x.q.size());
  const auto narrow = MutableHeadRows::dense(output.data(), Scalar::f32, query_heads, dim - 1);
  CHECK(check.attend(0, x.inputs(), narrow).code == StatusCode::invalid_argument);
  for (std::vector<float> Vectors::*member : {&Vectors::q, &Vectors::k, &Vectors::v}) {
    Vectors broken = x;
    (broken.*member)[1000] = NAN;
    CHECK(check.attend(0, broken.inputs()).code == StatusCode::not_finite);
  }
  CHECK(check.attend(0, x.inputs(), {}, {.causal = false}).code == StatusCode::invalid_argument);
  const PlaneReading depth{.rule = PlaneRule::tolerance, .logit_tolerance = 0.1f};
  CHECK(check.attend(0, x.inputs(), {}, {.planes = depth}).code == StatusCode::unsupported);
  CHECK(check.attend(0, x.inputs(), {}, {.softmax_scale = -1}).code ==
        StatusCode::invalid_argument);
  REQUIRE(check.attend(0, x.inputs()).ok());
  CHECK(check.attend(0, x.inputs()).code == StatusCode::wrong_phase);
  REQUIRE(check.attend(1, x.inputs()).ok());
  CHECK(check.report().status().code == StatusCode::wrong_phase);
  CHECK(check.report().status().detail == 2);

  std::vector<float> row(size(tokens / 2 + 1));
  CHECK(check.add_logits(nullptr, row.data(), 1, 1).code == StatusCode::null_pointer);
  CHECK(check.add_logits(row.data(), nullptr, 1, 1).code == StatusCode::null_pointer);
  CHECK(check.add_logits(row.data(), row.data(), 0, 1).code == StatusCode::invalid_argument);
  CHECK(check.add_logits(row.data(), row.data(), 1, 0).code == StatusCode::invalid_argument);
  CHECK(check.add_logits(row.data(), row.data(), tokens / 2 + 1, 1).code ==
        StatusCode::too_many_tokens);
  std::vector<float> bad = row;
  bad[3] = NAN;
  CHECK(check.add_logits(row.data(), bad.data(), 5, 1).code == StatusCode::not_finite);
  CHECK(check.add_logits(row.data(), bad.data(), 5, 1).detail == 3);
  bad[3] = -INFINITY;
  CHECK(check.add_logits(row.data(), bad.data(), 2, 2).code == StatusCode::not_finite);
  REQUIRE(check.add_logits(row.data(), row.data(), tokens / 2, 1).ok());  // none was added
  CHECK(check.add_logits(row.data(), row.data(), 1, 1).code == StatusCode::too_many_tokens);
}
