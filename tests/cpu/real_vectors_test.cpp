// Every codec on real keys, values and queries: SmolLM2-135M-Instruct, layer 5, 160 tokens of
// Persuasion (tests/data/smollm2_sample).
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "terse/terse.hpp"

#include "tests/support/cache_fixture.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int tokens = 160;
constexpr int query_tokens = 8;
constexpr int query_heads = 9;
constexpr int kv_heads = 3;
constexpr int head_dim = 64;

std::vector<F16> read_sample(const char* name, std::size_t count) {
  std::ifstream in(std::string(TERSE_TEST_DATA_DIR "/smollm2_sample/") + name, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(in)), {});
  REQUIRE(bytes.size() == count * sizeof(F16));
  std::vector<F16> values(count);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

struct Sample {
  std::vector<F16> keys = read_sample("keys.f16", std::size_t{tokens} * kv_heads * head_dim);
  std::vector<F16> values = read_sample("values.f16", std::size_t{tokens} * kv_heads * head_dim);
  std::vector<float> queries;  // [query token, query head, channel]

  Sample() {
    for (const F16 q :
         read_sample("queries.f16", std::size_t{query_tokens} * query_heads * head_dim)) {
      queries.push_back(to_float(q));
    }
  }

  /// Causal attention of the query tokens, the last ones, straight from the definition.
  [[nodiscard]] std::vector<float> exact_attention() const {
    std::vector<float> output;
    for (int row = 0; row < query_tokens * query_heads; ++row) {
      const int seen = tokens - query_tokens + row / query_heads + 1;
      const int kv_head = row % query_heads / (query_heads / kv_heads);
      std::vector<double> sum(head_dim);
      double weights = 0;
      for (int t = 0; t < seen; ++t) {
        const auto at = static_cast<std::size_t>(t * kv_heads + kv_head) * head_dim;
        double logit = 0;
        for (std::size_t c = 0; c < head_dim; ++c) {
          logit += double{queries[static_cast<std::size_t>(row) * head_dim + c]} *
                   double{to_float(keys[at + c])};
        }
        const double weight = std::exp(logit / 8);
        weights += weight;
        for (std::size_t c = 0; c < head_dim; ++c) {
          sum[c] += weight * double{to_float(values[at + c])};
        }
      }
      for (const double x : sum) output.push_back(static_cast<float>(x / weights));
    }
    return output;
  }
};

/// Appends the sample in steps that the last 8 tokens end, and attends with their queries.
/// `error_ceiling`: relative L2 distance to exact attention, about a quarter above what was
/// measured.
template <class... Parts>
void check_codec(const char* name, double error_ceiling, std::optional<TailSpec> tail = {}) {
  const Sample sample;
  using Fixture = CacheFixture<PagedLayout<>, Compose<Parts...>>;
  typename Fixture::Cache::Configs policies;
  std::get<0>(policies).tail = tail;
  Fixture f({.num_layers = 1,
             .num_query_heads = query_heads,
             .num_kv_heads = kv_heads,
             .head_dim = head_dim,
             .max_sequences = 1,
             .max_tokens = 192,
             .max_step_tokens = query_tokens},
            policies);
  StepPart part{*f.cache.create_sequence(), query_tokens};
  const Span<const StepPart> parts{&part, 1};
  const auto shape = f.cache.memory_plan().classes[0].shape;
  for (int t = 0; t < tokens; t += query_tokens) {
    if (t > 0) REQUIRE(f.cache.commit_step().ok());
    REQUIRE(f.cache.begin_step(parts).ok());
    const auto at = static_cast<std::size_t>(t) * kv_heads * head_dim;
    REQUIRE(f.cache
                .append(0, {.keys = HeadRows::dense(sample.keys.data() + at, Scalar::f16, kv_heads,
                                                    shape.key_width),
                            .values = HeadRows::dense(sample.values.data() + at, Scalar::f16,
                                                      kv_heads, shape.value_width)})
                .ok());
  }
  INFO(name);
  const auto oracle = run_attend(f.cache.layer(0), parts, sample.queries, Path::oracle);
  REQUIRE(oracle.status.ok());
  for (const char* kernels : {"portable", "avx2", "avx512"}) {
    const cpu::KernelTable* table = cpu::kernels_named(kernels);
    if (table == nullptr) continue;
    INFO(kernels);
    const auto attended =
        run_attend(f.cache.layer(0), parts, sample.queries, Path::vectorised, {}, false, *table);
    REQUIRE(attended.status.ok());
    CHECK(relative_l2(attended.output, oracle.output) < 1e-5);
    CHECK(relative_l2(attended.lse_ln, oracle.lse_ln) < 1e-5);
  }
  const double error = relative_l2(oracle.output, sample.exact_attention());
  CHECK(error < error_ceiling);
  // A ceiling far above the error would guard nothing.
  if (error_ceiling > 1e-5) CHECK(error > error_ceiling / 2);
}

}  // namespace

TEST_CASE("16-bit and 8-bit codecs on real vectors") {
  check_codec<>("identity", 1e-6);
  check_codec<Fp8>("fp8", 0.066);
  check_codec<Int8>("int8", 0.018);
  check_codec<Q8_0>("q8_0", 0.0085);
}

TEST_CASE("4-bit codecs on real vectors") {
  check_codec<Q4_0>("q4_0", 0.19);
  check_codec<Int4Rotated>("int4-rotated", 0.16);
  check_codec<Int4Rotated>("int4-rotated with a tail", 0.05, TailSpec{.min_tokens = 64});
  check_codec<Kivi4>("kivi-4", 0.053);
}

TEST_CASE("3-bit and 2-bit codecs on real vectors") {
  check_codec<Kivi3>("kivi-3", 0.133);
  check_codec<Kivi2>("kivi-2", 0.37);
  check_codec<Kivi2>("kivi-2 with exact sinks", 0.28,
                     TailSpec{.min_tokens = 1, .granule_tokens = 128, .sink_tokens = 4});
}
