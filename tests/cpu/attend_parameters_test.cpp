/// What AttendParams changes, empty and dead rows, and merging.
#include <cmath>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/plain_evictors.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

struct RandomlyEvicted {
  using evictor = RandomEvictor;
};

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 6,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 320,
          .max_step_tokens = 64};
}

/// Logits `[row, head][position]` and output by a loop over the stored 16-bit vectors.
Attended by_hand(const ClassShape& shape, int length, int rows, const AttendParams& params) {
  Attended result;
  const TokenRows stored = token_rows(shape, 1, 0, 0, length);
  const auto queries = query_rows(shape, 5, length - rows, rows);
  const auto half = [](float x) { return double{to_float(to_f16(x))}; };
  for (int row = 0; row < rows; ++row) {
    const int p = length - rows + row;
    for (int head = 0; head < shape.query_heads; ++head) {
      const int kv = head / (shape.query_heads / shape.kv_heads);
      const double scale = params.softmax_scale > 0 ? params.softmax_scale : 0.125;
      std::vector<double> out(64, 0.0);
      double sum = params.sink_logits == nullptr ? 0 : std::exp(double{params.sink_logits[head]});
      for (int t = 0; t <= p; ++t) {
        if (params.sliding_window_tokens > 0 && t <= p - params.sliding_window_tokens) continue;
        const auto at = static_cast<std::size_t>((t * 2 + kv) * 64);
        double logit = 0;
        for (std::size_t c = 0; c < 64; ++c) {
          logit += queries[static_cast<std::size_t>((row * shape.query_heads + head) * 64) + c] *
                   half(stored.keys[at + c]);
        }
        logit *= scale;
        if (params.logit_soft_cap > 0) {
          logit = params.logit_soft_cap * std::tanh(logit / params.logit_soft_cap);
        }
        sum += std::exp(logit);
        for (std::size_t c = 0; c < 64; ++c)
          out[c] += std::exp(logit) * half(stored.values[at + c]);
      }
      for (const double x : out) result.output.push_back(static_cast<float>(x / sum));
      result.lse_ln.push_back(static_cast<float>(std::log(sum)));
    }
  }
  return result;
}

}  // namespace

TEST_CASE("scale, soft cap, window and sink logits mean what they say", "[attend][parameters]") {
  Driver<PagedLayout<>, Identity> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 200, 64).ok());
  const float sinks[] = {-3.0f, 0.0f, 2.0f, 8.0f, -INFINITY, 30.0f};
  std::vector<AttendParams> all = {
      {}, {.softmax_scale = 0.5f}, {.logit_soft_cap = 2.0f}, {.sink_logits = sinks}};
  for (const int window : {1, 2, 63, 64, 65, 199, 200, 201, 1000}) {
    all.push_back({.sliding_window_tokens = window});
  }
  all.push_back({.softmax_scale = 0.3f,
                 .logit_soft_cap = 5.0f,
                 .sliding_window_tokens = 100,
                 .sink_logits = sinks});
  for (const AttendParams& params : all) {
    INFO("scale " << params.softmax_scale << ", cap " << params.logit_soft_cap << ", window "
                  << params.sliding_window_tokens);
    const Attended expected = by_hand(d.shape(), 200, 5, params);
    for (const Path path : {Path::vectorised, Path::oracle}) {
      const Attended got = d.attend(s, 5, path, params);
      REQUIRE(got.status.ok());
      CHECK(relative_l2(got.output, expected.output) < 1e-5);
      CHECK(relative_l2(got.lse_ln, expected.lse_ln) < 1e-5);
    }
  }
}

TEMPLATE_TEST_CASE("parameters on encoded blocks agree with the oracle", "[attend][parameters]",
                   Int4Rotated, Kivi2) {
  Driver<PagedLayout<>, TestType> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 64).ok());
  const float sinks[] = {-3.0f, 0.0f, 2.0f, 8.0f, -1.0f, 30.0f};
  for (const int rows : {1, 2, 40}) {
    for (const int window : {0, 1, 70, 150}) {
      const AttendParams params{
          .logit_soft_cap = 4.0f, .sliding_window_tokens = window, .sink_logits = sinks};
      const Attended fast = d.attend(s, rows, Path::vectorised, params, true);
      const Attended slow = d.attend(s, rows, Path::oracle, params, true);
      CHECK(relative_l2(fast.output, slow.output) < 1e-5);
      CHECK(relative_l2(fast.lse_ln, slow.lse_ln) < 1e-5);
      CHECK(relative_l2(fast.column_sums, slow.column_sums) < 1e-5);
    }
  }
}

TEST_CASE("rows that see nothing give zero and -infinity, and merge as nothing",
          "[attend][parameters]") {
  Driver<PagedLayout<HeadPaging::per_head>, Compose<Kivi2, RandomlyEvicted>> d(
      config(), {.eviction = {.drop_percent = 100}});
  const SequenceId s = d.create();
  for (const int length : {1, 60, 64, 200, 300}) {
    REQUIRE(d.fill(s, length, 64).ok());
    REQUIRE(d.cache.evict(s).ok());
    for (const Path path : {Path::vectorised, Path::oracle}) {
      Attended dead = d.attend(s, 1, path, {}, true);
      REQUIRE(dead.status.ok());
      for (const float x : dead.output) REQUIRE(x == 0.0f);
      for (const float x : dead.lse_ln) REQUIRE(x == -INFINITY);
      for (const float x : dead.column_sums) REQUIRE(x == 0.0f);
      const Attended copy = dead;
      merge(6, 64, dead.output.data(), dead.lse_ln.data(), copy.output.data(), copy.lse_ln.data());
      CHECK(same_bits(dead, copy));
      std::vector<float> output(6 * 64, 0.5f), lse(6, 1.25f);
      merge(6, 64, output.data(), lse.data(), dead.output.data(), dead.lse_ln.data());
      for (const float x : output) REQUIRE(x == 0.5f);
      for (const float x : lse) REQUIRE(x == 1.25f);
      merge(6, 64, dead.output.data(), dead.lse_ln.data(), output.data(), lse.data());
      CHECK(same_bits(dead.output, output));
      CHECK(same_bits(dead.lse_ln, lse));
    }
  }
  // A model's sink alone: zero output, its logit as lse_ln.
  const float sinks[] = {-3.0f, 0.0f, 2.0f, 8.0f, -1.0f, -INFINITY};
  const Attended only = d.attend(s, 1, Path::vectorised, {.sink_logits = sinks});
  for (const float x : only.output) REQUIRE(x == 0.0f);
  for (std::size_t i = 0; i < 6; ++i) CHECK(only.lse_ln[i] == sinks[i]);
}

TEMPLATE_TEST_CASE("rows of a sequence without tokens are zero, and merging them changes nothing",
                   "[attend][parameters]", Identity, Int8, Kivi2) {
  Driver<PagedLayout<>, TestType> d(config());
  const SequenceId s = d.create();
  for (const int rows : {1, 3}) {
    const StepPart part{s, rows};
    const auto queries = query_rows(d.shape(), 5, 0, rows);
    for (const Path path : {Path::vectorised, Path::oracle}) {
      const Attended none = run_attend(d.cache.layer(0), {&part, 1}, queries, path);
      REQUIRE(none.status.ok());
      for (const float x : none.output) REQUIRE(x == 0.0f);
      for (const float x : none.lse_ln) REQUIRE(x == -INFINITY);
      Attended other = none;
      for (float& x : other.output) x = 0.25f;
      for (float& x : other.lse_ln) x = 2.0f;
      Attended merged = other;
      merge(6 * rows, 64, merged.output.data(), merged.lse_ln.data(), none.output.data(),
            none.lse_ln.data());
      CHECK(same_bits(merged, other));
    }
  }
}

TEST_CASE("merged parts are the attention over their union", "[attend][parameters]") {
  // The same text whole, and cut into a window and what lies before it.
  Driver<PagedLayout<>, Identity> whole(config());
  Driver<PagedLayout<>, Identity> before(config());
  const SequenceId s = whole.create();
  REQUIRE(before.create() == s);
  REQUIRE(whole.fill(s, 250, 64).ok());
  REQUIRE(before.fill(s, 150, 64).ok());
  const StepPart part{s, 1};
  const auto queries = query_rows(whole.shape(), 5, 249, 1);
  Attended merged = run_attend(before.cache.layer(0), {&part, 1}, queries, Path::vectorised);
  const Attended rest = run_attend(whole.cache.layer(0), {&part, 1}, queries, Path::vectorised,
                                   {.sliding_window_tokens = 100});
  merge(6, 64, merged.output.data(), merged.lse_ln.data(), rest.output.data(), rest.lse_ln.data());
  const Attended all = run_attend(whole.cache.layer(0), {&part, 1}, queries, Path::vectorised);
  CHECK(relative_l2(merged.output, all.output) < 1e-6);
  CHECK(relative_l2(merged.lse_ln, all.lse_ln) < 1e-6);
}

TEMPLATE_TEST_CASE("without a causal mask rows see the newer tokens of their part",
                   "[attend][parameters]", Identity, Int4Rotated, Kivi2) {
  Driver<PagedLayout<>, TestType> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 200, 64).ok());
  const int rows = 30;  // over the boundary at 192
  for (const int window : {0, 10, 100}) {
    const AttendParams open{.sliding_window_tokens = window, .causal = false};
    const Attended fast = d.attend(s, rows, Path::vectorised, open, true);
    const Attended slow = d.attend(s, rows, Path::oracle, open, true);
    REQUIRE(fast.status.ok());
    CHECK(relative_l2(fast.output, slow.output) < 1e-5);
    CHECK(relative_l2(fast.lse_ln, slow.lse_ln) < 1e-5);
    CHECK(relative_l2(fast.column_sums, slow.column_sums) < 1e-5);
  }
  const Attended fast = d.attend(s, rows, Path::vectorised, {.causal = false});
  const Attended causal = d.attend(s, rows);
  const auto row_floats = static_cast<std::ptrdiff_t>(6 * 64);
  const auto row_of = [&](const Attended& a, int row) {
    return std::vector<float>(a.output.begin() + row * row_floats,
                              a.output.begin() + (row + 1) * row_floats);
  };
  CHECK(relative_l2(row_of(fast, rows - 1), row_of(causal, rows - 1)) < 1e-6);
  CHECK(relative_l2(row_of(fast, 0), row_of(causal, 0)) > 1e-3);
}

TEST_CASE("a sink of -infinity where nothing else is seen gives zero and -infinity",
          "[attend][parameters]") {
  Driver<PagedLayout<>, Int8> d(config());
  const StepPart part{d.create(), 1};
  const auto queries = query_rows(d.shape(), 5, 0, 1);
  const std::vector<float> sinks(6, -INFINITY);
  for (const Path path : {Path::vectorised, Path::oracle}) {
    const Attended a =
        run_attend(d.cache.layer(0), {&part, 1}, queries, path, {.sink_logits = sinks.data()});
    REQUIRE(a.status.ok());
    for (const float x : a.output) REQUIRE(x == 0.0f);
    for (const float x : a.lse_ln) REQUIRE(x == -INFINITY);
  }
}

TEST_CASE("sink logits that are no numbers are refused", "[attend][parameters]") {
  Driver<PagedLayout<>, Int8> d(config());
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 3, 3).ok());
  for (const float bad : {NAN, INFINITY}) {
    const float sinks[] = {0, 0, 0, 0, bad, 0};
    const Status status = d.attend(s, 1, Path::vectorised, {.sink_logits = sinks}).status;
    CHECK(status.code == StatusCode::invalid_argument);
    CHECK(status.detail == 4);
  }
}

TEMPLATE_TEST_CASE("a NaN in a query makes its head NaN, not empty", "[attend][parameters]",
                   Identity, Int8, Int4Rotated, Kivi2) {
  Driver<PagedLayout<>, TestType> d(config());
  const SequenceId s = d.create();
  for (const int length : {40, 64, 200}) {
    REQUIRE(d.fill(s, length, 64).ok());
    const StepPart part{s, 1};
    auto queries = query_rows(d.shape(), 5, 0, 1);
    queries[64 + 7] = NAN;  // head 1
    for (const char* name : {"portable", "avx2", "avx512"}) {
      const cpu::KernelTable* table = cpu::kernels_named(name);
      if (table == nullptr) continue;
      INFO(name << ", " << length << " tokens");
      const Attended a =
          run_attend(d.cache.layer(0), {&part, 1}, queries, Path::vectorised, {}, false, *table);
      REQUIRE(a.status.ok());
      for (std::size_t head = 0; head < 6; ++head) {
        CHECK(std::isnan(a.lse_ln[head]) == (head == 1));
        for (std::size_t c = 0; c < 64; ++c) {
          REQUIRE(std::isnan(a.output[head * 64 + c]) == (head == 1));
        }
      }
    }
    CHECK(std::isnan(run_attend(d.cache.layer(0), {&part, 1}, queries, Path::oracle).lse_ln[1]));
  }
}

TEST_CASE("queries with a channel above all others keep their accuracy", "[attend][parameters]") {
  // One-sided queries become one spike by a Hadamard rotation.
  const auto check = [](auto& d, float mean, float size) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, 320, 64).ok());
    Random random(3);
    std::vector<float> queries = random.normals(6 * 64);
    for (float& q : queries) q = (std::abs(q) + mean) * size;
    const StepPart part{s, 1};
    const auto ref = d.cache.layer(0);
    const Attended slow = run_attend(ref, {&part, 1}, queries, Path::oracle);
    for (const char* name : {"portable", "avx2", "avx512"}) {
      const cpu::KernelTable* table = cpu::kernels_named(name);
      if (table == nullptr) continue;
      const Attended fast =
          run_attend(ref, {&part, 1}, queries, Path::vectorised, {}, false, *table);
      INFO(name << ", mean " << mean << ", size " << size);
      CHECK(relative_l2(fast.output, slow.output) < 1e-5);
    }
    REQUIRE(d.cache.release(s).ok());
  };
  for (const float mean : {0.0f, 1.0f, 3.0f}) {
    for (const float size : {1.0f, 4.0f}) {
      Driver<PagedLayout<>, Int4Rotated> rotated(config());
      check(rotated, mean, size);
      Driver<PagedLayout<>, Q4_0> baseline(config());
      check(baseline, mean, size);
    }
  }
}

namespace {

/// Int8 whose format no kernel knows.
struct Int8ThroughDecode {
  static constexpr Granularity granularity = Granularity::per_token;
  static constexpr Record record(Side side, int width) { return Int8::record(side, width); }
  static void encode_token(const CodecContext& context, const float* x, int token,
                           std::byte* block) {
    Int8::encode_token(context, x, token, block);
  }
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return Int8::decode(context, block, token, channel);
  }
};

}  // namespace

TEST_CASE("only policies with their own kernels pass require_specialized", "[attend][parameters]") {
  Driver<PagedLayout<>, Int8> d(config());
  Driver<PagedLayout<>, Int8ThroughDecode> generic(config());
  const SequenceId s = d.create();
  REQUIRE(generic.create() == s);
  REQUIRE(d.fill(s, 3, 3).ok());
  REQUIRE(generic.fill(s, 3, 3).ok());
  CHECK(d.attend(s, 1, Path::vectorised, {.require_specialized = true}).status.ok());
  CHECK(cpu::is_specialized<decltype(d.cache.layer(0))>);
  CHECK(generic.attend(s, 1, Path::vectorised, {.require_specialized = true}).status.code ==
        StatusCode::unsupported);
  CHECK(relative_l2(generic.attend(s).output, d.attend(s).output) < 1e-5);
  // Groups of 8 tokens do not fall in with vectors of 16.
  using Narrow = Kivi<KiviSpec{.bits = 2, .group_tokens = 8}>;
  Driver<PagedLayout<>, Narrow> narrow(config());
  REQUIRE(narrow.create() == s);
  REQUIRE(narrow.fill(s, 130, 64).ok());
  const bool vectorised = cpu::kernels_named("avx2") != nullptr;
  CHECK(narrow.attend(s, 1, Path::vectorised, {.require_specialized = true}).status.code ==
        (vectorised ? StatusCode::unsupported : StatusCode::ok));
  CHECK(narrow.attend(s).status.ok());
}
