/// Tails of 8 bits: the same bytes as on the host, and attention to them.
#include <algorithm>

#include "cuda/attend_check.cuh"
#include "cuda/cache_pair.cuh"
#include "cuda/columns_check.cuh"
#include "cuda/device_pages.cuh"
#include "cuda/twin.cuh"
#include "cuda/twin_calibration.cuh"
#include "support/projection_factors.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64>;  // kernels take long to compile
using OddDims = cuda::HeadDims<80>;
using Rough = Compose<Kivi2, TailCodec<Int8>>;
using Rotated = Compose<Int4Rotated, TailCodec<Int8>>;
using Calibrated = Compose<Shaped2, TailCodec<Int8>>;
/// Values that are sealed to 16 bits from 8.
using HalfValues = Compose<KeyValue<Kivi2::key_codec, Identity>, TailCodec<Int8>>;
/// Codes are written over the tokens that they are found from.
using Elements = Compose<Kivi2, TailCodec<NvFp4>>;
constexpr TailSpec short_tail{.min_tokens = 20, .granule_tokens = 64, .sink_tokens = 5};

template <Layout L, class P>
void run(std::uint64_t seed, int head_dim, const TailSpec& tail) {
  INFO("head dimension " << head_dim);
  Twin<L, P> twin(two_layers(head_dim, 70), {{.tail = tail}});
  TwinRun<Twin<L, P>> calls(twin, seed);
  REQUIRE(calls.go(150) == "");
}

}  // namespace

TEST_CASE("tails of 8 bits on host and device", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Rough>(1, 64, Rough::tail);
  run<ContiguousLayout, Rough>(2, 128, {.min_tokens = 70, .granule_tokens = 128});
  run<PagedLayout<HeadPaging::per_head>, Rotated>(3, 80, short_tail);
  run<PagedLayout<>, Rotated>(4, 64, {.sink_tokens = 4});  // no tail
  run<PagedLayout<>, HalfValues>(5, 64, short_tail);
}

TEST_CASE("tails of another codec on host and device", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  run<PagedLayout<>, Elements>(8, 64, short_tail);
}

TEST_CASE("large numbers in tails of 8 bits on host and device", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Twin<PagedLayout<>, HalfValues> twin(two_layers(64, 70), {{.tail = short_tail}});
  const SequenceId s = *twin.host.cache.create_sequence();
  REQUIRE(*twin.device.create_sequence(nullptr) == s);
  Random random(7);
  for (const int tokens : {70, 70, 1}) {
    const StepPart part{s, tokens};
    REQUIRE(twin.host.cache.begin_step({&part, 1}).ok());
    REQUIRE(twin.device.begin_step({&part, 1}, nullptr).ok());
    for (const int layer : {0, 1}) {  // bf16 holds more than fp16 can
      REQUIRE(twin.append(random, layer, tokens, Scalar::bf16, Numbers::odd).ok());
    }
    REQUIRE(twin.difference(1) == "");
    REQUIRE(twin.host.cache.commit_step().ok());
    REQUIRE(twin.device.commit_step(nullptr).ok());
  }
}

TEST_CASE("blocks of shaped codes that are sealed from 8 bits on host and device",
          "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const int most_tokens = GENERATE(70, 5);  // few: several thread blocks seal a block
  const TwinCalibration calibration(2, 2, 128);
  PolicyConfig<Calibrated> policy{.tail = TailSpec{.min_tokens = 70, .sink_tokens = 5},
                                  .encodes_ahead = true};
  PolicyConfig<Calibrated> on_device = policy;
  policy.calibration = calibration.host.view();
  on_device.calibration = calibration.on_device();
  Twin<PagedLayout<>, Calibrated> twin(two_layers(128, most_tokens), {policy}, {on_device});
  // Codes are made in a stream beside the step.
  cudaStream_t side = nullptr;
  cudaEvent_t appended = nullptr, encoded = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking) == cudaSuccess);
  REQUIRE(cudaEventCreate(&appended) == cudaSuccess);
  REQUIRE(cudaEventCreate(&encoded) == cudaSuccess);
  Random random(5);
  twin.after_append = [&](int layer) {
    if (random.below(2) == 0) return Status{};
    if (Status s = twin.host.cache.encode_ahead(layer); !s.ok()) return s;
    if (cudaEventRecord(appended, nullptr) != cudaSuccess ||
        cudaStreamWaitEvent(side, appended) != cudaSuccess) {
      return error(StatusCode::device_error, "an event");
    }
    if (Status s = twin.device.encode_ahead(layer, side); !s.ok()) return s;
    return cudaEventRecord(encoded, side) == cudaSuccess &&
                   cudaStreamWaitEvent(nullptr, encoded) == cudaSuccess
               ? Status{}
               : error(StatusCode::device_error, "an event");
  };
  TwinRun<Twin<PagedLayout<>, Calibrated>> calls(twin, 5);
  REQUIRE(calls.go(most_tokens == 5 ? 240 : 80) == "");
  REQUIRE(cudaStreamDestroy(side) == cudaSuccess);
  REQUIRE(cudaEventDestroy(appended) == cudaSuccess);
  REQUIRE(cudaEventDestroy(encoded) == cudaSuccess);
}

TEST_CASE("attention to calibrated codes with a tail of 8 bits", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const HostCalibration calibration(1, 2, 128);
  PolicyConfig<Calibrated> policy{.tail = short_tail};
  policy.calibration = calibration.view();
  Driver<PagedLayout<>, Calibrated> d(device_config(12, 2, 128, 512), policy);
  const SequenceId s = d.create();
  for (const int length : {3, 64, 300}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows<cuda::HeadDims<128>>(d, s, 1);
    check_rows<cuda::HeadDims<128>>(d, s, 3);
  }
}

TEST_CASE("attention to tails of 8 bits against the oracle", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const auto check = []<class HeadDims>(auto&& d, HeadDims) {
    const SequenceId s = d.create();
    for (const int length : {1, 20, 64, 200, 444}) {
      REQUIRE(d.fill(s, length, 100).ok());
      for (const int rows : {1, std::min(length, 11)}) {
        check_rows<HeadDims>(d, s, rows);
        check_rows_columns<HeadDims>(d, s, rows);
      }
    }
    AttendParams params;
    params.logit_soft_cap = 5.0f;
    check_rows<HeadDims>(d, s, 3, params);
    params = {.sliding_window_tokens = 30};
    check_rows<HeadDims>(d, s, 3, params);
  };
  check(Driver<PagedLayout<>, Rough>(device_config(12, 2, 64, 512)), Dims{});
  check(Driver<PagedLayout<>, Rough>(device_config(4, 2, 80, 512), {.tail = short_tail}),
        OddDims{});
  check(Driver<ContiguousLayout, Rotated>(device_config(4, 2, 64, 512), {.tail = short_tail}),
        Dims{});
}

TEST_CASE("distances in the cache with a tail of 8 bits on the device", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<Kivi2, TailCodec<Int8>, StreamingLLM>;
  CacheConfig config = device_config(4, 2, 64, 512);
  config.rope = {.rotary_dim = 64};
  PolicyConfig<P> policy{.eviction = {.sink_tokens = 6, .window_tokens = 150}, .tail = short_tail};
  Driver<PagedLayout<>, P> d(config, policy);
  const SequenceId s = d.create();
  for (const int length : {3, 40, 300}) {
    REQUIRE(d.fill(s, length, 100).ok());
    REQUIRE(d.cache.evict(s).ok());
    check_rows<Dims>(d, s, 1);
    check_rows<Dims>(d, s, 3);
  }
}

TEST_CASE("latents with a tail of 8 bits on the device", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using P = Compose<PaluPerHead, Kivi2, TailCodec<Int8>>;
  const Factors factors(4, 64, 48, 32);
  CacheConfig config = device_config(8, 4, 64, 512);
  config.rope = {.rotary_dim = 64};
  PolicyConfig<P> policy{.tail = short_tail};
  policy.factors = {&factors.view, 1};
  Driver<PagedLayout<>, P> d(config, policy);
  const SequenceId s = d.create();
  for (const int length : {17, 129, 300}) {
    REQUIRE(d.fill(s, length, 100).ok());
    check_rows<Dims>(d, s, 1);
    check_rows_columns<Dims>(d, s, std::min(length, 11));
  }
}

TEST_CASE("exports of tails of 8 bits", "[cuda][tail_codec]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Rotated> pair(1, {.tail = TailSpec{.min_tokens = 70, .sink_tokens = 16}});
  const SequenceId a = pair.create(), b = pair.create();
  pair.fill(a, 333, 100);
  pair.fill(b, 20, 20);
  check_exports(pair, {a, b});
}
