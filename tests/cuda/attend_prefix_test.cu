/// Distances inside the cache on the device: sinks meet queries that are turned by other steps.
#include <algorithm>

#include "cuda/attend_check.cuh"
#include "cuda/user_codec.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using PerHead = PagedLayout<HeadPaging::per_head>;
using Dims = cuda::HeadDims<64>;  // kernels take long to compile
using OddDims = cuda::HeadDims<80, 256>;

CacheConfig turned_config(int query_heads, int head_dim, const RopeSpec& rope) {
  CacheConfig config = device_config(query_heads, 2, head_dim, 1024);
  config.rope = rope;
  return config;
}

/// Attends at lengths of all kinds, before and after tokens between the sinks and the window went.
template <Layout L, class P, class HeadDims = Dims>
void check_lengths(const CacheConfig& config, const PolicyConfig<PolicyOf<P>>& policy) {
  Driver<L, P> d(config, policy);
  const SequenceId s = d.create();
  for (const int length : {3, 40, 130, 300, 420, 700}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows<HeadDims>(d, s, 1);
    check_rows<HeadDims>(d, s, std::min(length, 9));
    REQUIRE(d.cache.evict(s).ok());
    check_rows<HeadDims>(d, s, 1);
    check_rows<HeadDims>(d, s, std::min(length, 9));
  }
  CHECK(detail::prefix_shift(d.cache.layer(0), s.index, 0, d.length(s) - 1) < -100);
}

template <class P>
PolicyConfig<PolicyOf<P>> window(int sinks, int tokens) {
  PolicyConfig<PolicyOf<P>> policy;
  policy.eviction = {.sink_tokens = sinks, .window_tokens = tokens};
  return policy;
}

}  // namespace

TEST_CASE("sinks at their distances in the cache on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using Plain = StreamingLLM;
  check_lengths<PerHead, Plain>(turned_config(8, 64, {.rotary_dim = 64}), window<Plain>(4, 150));
  using Rotated = Compose<Int4Rotated, StreamingLLM>;
  check_lengths<PagedLayout<>, Rotated, cuda::HeadDims<128>>(
      turned_config(2, 128, {.rotary_dim = 128}), window<Rotated>(4, 150));
  using Rough = Compose<Kivi2, StreamingLLM>;
  check_lengths<PagedLayout<>, Rough>(turned_config(6, 64, {.rotary_dim = 64}),
                                      window<Rough>(4, 200));
  // Part of the channels turn, neighbours in pairs; scaled as Llama 3.1 does.
  using Eight = Compose<Q8_0, StreamingLLM>;
  check_lengths<ContiguousLayout, Eight, cuda::HeadDims<96>>(
      turned_config(4, 96,
                    {.pairing = RopePairing::interleaved,
                     .rotary_dim = 32,
                     .base = 500000.0,
                     .low_freq_factor = 1,
                     .high_freq_factor = 4,
                     .frequency_scale = 8,
                     .original_context = 512}),
      window<Eight>(4, 150));
}

TEST_CASE("prefixes of several blocks and exact sinks on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const RopeSpec rope{.rotary_dim = 64};
  using Eight = Compose<Int8, StreamingLLM>;
  check_lengths<PagedLayout<>, Eight>(turned_config(4, 64, rope), window<Eight>(90, 150));
  using Rough = Compose<Kivi2, StreamingLLM>;
  for (const int exact : {2, 4, 9}) {
    PolicyConfig<PolicyOf<Rough>> policy = window<Rough>(4, 150);
    policy.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64, .sink_tokens = exact};
    check_lengths<PagedLayout<>, Rough>(turned_config(4, 64, rope), policy);
  }
  PolicyConfig<PolicyOf<Rough>> policy = window<Rough>(20, 150);  // more than exact sinks
  policy.tail = TailSpec{.min_tokens = 70, .granule_tokens = 64, .sink_tokens = 9};
  check_lengths<PagedLayout<>, Rough>(turned_config(4, 64, rope), policy);
  using User = Compose<UserCodec, StreamingLLM>;
  check_lengths<PagedLayout<>, User>(turned_config(4, 64, rope), window<User>(4, 150));
}

TEST_CASE("odd head dimensions with distances in the cache on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int4Rotated, StreamingLLM>;
  check_lengths<PagedLayout<>, P, OddDims>(turned_config(4, 80, {.rotary_dim = 80}),
                                           window<P>(4, 150));
  check_lengths<PagedLayout<>, P, OddDims>(turned_config(4, 256, {.rotary_dim = 128}),
                                           window<P>(4, 150));
}

TEST_CASE("several sequences with distances in the cache on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Kivi2, StreamingLLM>;
  Driver<PerHead, P> d(turned_config(8, 64, {.rotary_dim = 64}), window<P>(4, 200));
  std::vector<StepPart> parts;
  std::vector<float> queries;
  for (const auto& [length, rows] : {std::pair{700, 3}, {50, 1}, {480, 20}}) {
    const SequenceId s = d.create();
    REQUIRE(d.fill(s, length, 100).ok());
    REQUIRE(d.cache.evict(s).ok());
    parts.push_back({s, rows});
    const std::vector<float> own = query_rows(d.shape(), 5, length - rows, rows);
    queries.insert(queries.end(), own.begin(), own.end());
  }
  check_against_oracle<Dims>(d.cache.layer(0), d.buffers.view(), parts, queries);
  parts[1].sequence.generation += 1;  // stale: zeros, and the others as they were
  const Attended own = run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), parts, queries);
  REQUIRE(own.status.ok());
  const Attended all = [&] {
    parts[1].sequence.generation -= 1;
    return run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), parts, queries);
  }();
  const std::size_t row = own.output.size() / 24;
  for (std::size_t i = 0; i < own.output.size(); ++i) {
    const bool is_stale = i / row == 3;
    REQUIRE(own.output[i] == (is_stale ? 0.0f : all.output[i]));
  }
}

TEST_CASE("column sums that distances in the cache do not have on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, StreamingLLM>;
  Driver<PagedLayout<>, P> d(turned_config(4, 64, {.rotary_dim = 64}), window<P>(4, 200));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 100, 100).ok());
  const StepPart part{s, 1};
  const DeviceBytes parts = DeviceBytes::copy_of(&part, 1);
  const DeviceBytes floats(4096 * sizeof(float));
  const cuda::AttendInputs in{parts.as<StepPart>(), 1, 1,
                              HeadRows::dense(floats.as<float>(), Scalar::f32, 4, 64)};
  CHECK(cuda::sum_attention_columns<Dims>(d.cache.layer(0), in, floats.as<float>(),
                                          floats.as<float>(), {}, nullptr)
            .code == StatusCode::unsupported);
}

TEST_CASE("parameters of attention with distances in the cache on the device", "[cuda][attend]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Int8, StreamingLLM>;
  Driver<PagedLayout<>, P> d(turned_config(4, 64, {.rotary_dim = 64}), window<P>(4, 200));
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 600, 100).ok());
  REQUIRE(d.cache.evict(s).ok());
  const std::vector<float> sinks(4, 1.5f);
  AttendParams p;
  p.softmax_scale = 0.31f;
  check_rows<Dims>(d, s, 3, p);
  check_row_types<Dims>(d, s, 3, p);
  p.logit_soft_cap = 5.0f;
  check_rows<Dims>(d, s, 3, p);
  p = {};
  p.causal = false;
  check_rows<Dims>(d, s, 4, p);
  p.sink_logits = sinks.data();
  check_rows<Dims>(d, s, 2, p);
  p = {};
  p.sliding_window_tokens = 100;
  const StepPart part{s, 1};
  const std::vector<float> queries = query_rows(d.shape(), 5, d.length(s) - 1, 1);
  CHECK(
      run_on_device<Dims>(d.cache.layer(0), d.buffers.view(), {&part, 1}, queries, p).status.code ==
      StatusCode::unsupported);
}
