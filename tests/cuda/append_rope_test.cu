/// Keys that append turns to their positions: the same bits on host and device.
#include <algorithm>
#include <vector>

#include "cuda/twin.cuh"
#include "support/catch.hpp"
#include "support/rope_turns.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// Both caches, and the same table for them.
template <class P>
struct TurnedTwin : Twin<PagedLayout<>, P> {
  using Base = Twin<PagedLayout<>, P>;
  using Base::device;
  using Base::host;
  Random random{5};
  std::vector<float> turns;
  DeviceBytes device_turns;
  SequenceId id, other;

  explicit TurnedTwin(const RopeSpec& rope)
      : Base(rope_config(rope)),
        turns(rope_turns(rope, rope_positions)),
        device_turns(DeviceBytes::copy_of(turns.data(), turns.size())) {
    id = *host.cache.create_sequence();
    REQUIRE(*device.create_sequence(nullptr) == id);
    other = *host.cache.create_sequence();
    REQUIRE(*device.create_sequence(nullptr) == other);
  }
  /// Statuses of append on both.
  std::pair<Status, Status> append(const std::vector<StepPart>& parts, Scalar type,
                                   std::int64_t device_positions, std::ptrdiff_t shift = 0) {
    REQUIRE(host.cache.begin_step(parts).ok());
    REQUIRE(device.begin_step(parts, nullptr).ok());
    int rows = 0;
    for (const StepPart& part : parts) rows += part.tokens;
    const TwinInputs in(random, this->shape(0), rows, type, Numbers::odd);
    AppendInputs on_host = in.on_host(), on_device = in.on_device();
    on_host.rope = {turns.data(), rope_positions};
    on_device.rope = {device_turns.template as<float>() + shift, device_positions};
    const std::pair result{host.cache.append(0, on_host), device.append(0, on_device, nullptr)};
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    return result;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("append turns keys on the device as on the host", "[cuda][append]", Identity,
                   Int8, Int4Rotated, Kivi2) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const RopeSpec& rope :
       {RopeSpec{.rotary_dim = 64}, RopeSpec{.pairing = RopePairing::interleaved, .rotary_dim = 24},
        RopeSpec{.pairing = RopePairing::interleaved, .rotary_dim = 64, .base = 5e5}}) {
    TurnedTwin<TestType> twin(rope);
    for (const int tokens : {1, 70, 3, 128, 98}) {
      const Scalar type = tokens % 2 == 0 ? Scalar::bf16 : Scalar::f32;
      std::vector<StepPart> parts{{twin.id, tokens}};
      if (tokens < 100) parts.insert(parts.begin(), {twin.other, 2});  // at other positions
      const auto [a, b] = twin.append(parts, type, rope_positions);
      REQUIRE(a.ok());
      REQUIRE(b.ok());
      CHECK(twin.difference(2) == "");
      REQUIRE(twin.host.cache.commit_step().ok());
      REQUIRE(twin.device.commit_step(nullptr).ok());
    }
  }
}

TEST_CASE("a table of turns that ends too early on the device", "[cuda][append]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  TurnedTwin<Int8> twin(RopeSpec{.rotary_dim = 64});
  const auto [a, b] = twin.append({{twin.id, 10}}, Scalar::f16, 9);
  CHECK(a.ok());
  CHECK(b.code == StatusCode::invalid_argument);
  CHECK(b.detail == 10);
}

TEST_CASE("a table of turns that is not aligned on the device", "[cuda][append]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  TurnedTwin<Int8> twin(RopeSpec{.rotary_dim = 64});
  CHECK(twin.append({{twin.id, 10}}, Scalar::f16, 20, 1).second.code == StatusCode::misaligned);
}

TEST_CASE("a replayed append whose table of turns has become too short", "[cuda][append]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  TurnedTwin<Int8> twin(RopeSpec{.rotary_dim = 64});
  auto& cache = twin.device;
  const TwinInputs in(twin.random, twin.shape(0), 1, Scalar::f16);
  AppendInputs inputs = in.on_device();
  inputs.rope = {twin.device_turns.template as<float>(), 2};
  const StepPart part{twin.id, 1};
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t run = nullptr;
  for (int step = 0; step < 4; ++step) {
    REQUIRE(cache.begin_step({&part, 1}, stream).ok());
    if (step == 0) {
      REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
      REQUIRE(cache.append(0, inputs, stream).ok());
      REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
      REQUIRE(cudaGraphInstantiate(&run, graph, 0) == cudaSuccess);
    } else {
      REQUIRE(cache.appended_by_graph().ok());
    }
    REQUIRE(cudaGraphLaunch(run, stream) == cudaSuccess);
    REQUIRE(cache.commit_step(stream).ok());
  }
  // The third step's position is beyond the table; the first two are kept.
  CHECK(cache.recover(twin.id, stream).code == StatusCode::invalid_argument);
  CHECK(*cache.length(twin.id) == 2);
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}
