/// One captured launch, replayed after the lengths have changed; refusals; and the same bits from
/// run to run.
#include <cuda_runtime.h>

#include "cuda/attend_check.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64>;
using D = Driver<PagedLayout<>, Kivi2>;

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 8,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 3,
          .max_tokens = 2000,
          .max_step_tokens = 128};
}

/// Device memory of one decode step of two sequences.
struct Step {
  DeviceBuffers buffers;
  DeviceBytes parts, queries, output, workspace;
  KVCacheRef<PagedLayout<>, PolicyOf<Kivi2>> view;
  cuda::AttendInputs in;
  cuda::AttendOutputs out;

  Step(const D& d, const std::vector<StepPart>& host_parts, const std::vector<float>& host_queries)
      : buffers(d.buffers.view()),
        parts(DeviceBytes::copy_of(host_parts.data(), host_parts.size())),
        queries(DeviceBytes::copy_of(host_queries.data(), host_queries.size())),
        output(host_queries.size() * sizeof(float)),
        view(cuda::rebase(d.cache.layer(0), d.buffers.view(), buffers.view())) {
    in = {parts.as<StepPart>(), static_cast<int>(host_parts.size()),
          static_cast<int>(host_parts.size()),
          HeadRows::dense(queries.as<float>(), Scalar::f32, 8, 64)};
    out = {MutableHeadRows::dense(output.as<float>(), Scalar::f32, 8, 64)};
    workspace = DeviceBytes(*cuda::attend_workspace_bytes(view, in));
    REQUIRE(cuda::clear_workspace(workspace.span(), nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
};

std::vector<float> queries_of(const D& d, const std::vector<StepPart>& parts) {
  std::vector<float> queries;
  for (const StepPart& part : parts) {
    const auto rows = query_rows(d.shape(), 5, d.length(part.sequence) - 1, 1);
    queries.insert(queries.end(), rows.begin(), rows.end());
  }
  return queries;
}

}  // namespace

TEST_CASE("a captured launch serves the lengths it finds", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(config());
  const std::vector<StepPart> parts = {{d.create(), 1}, {d.create(), 1}};
  REQUIRE(d.fill(parts[0].sequence, 70, 64).ok());
  REQUIRE(d.fill(parts[1].sequence, 900, 128).ok());
  Step step(d, parts, queries_of(d, parts));

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replayable;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  REQUIRE(cuda::attend<Dims>(step.view, step.in, step.out, step.workspace.span(), {}, stream).ok());
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&replayable, graph, 0) == cudaSuccess);

  for (const int grow : {0, 61, 700}) {
    REQUIRE(d.fill(parts[0].sequence, 70 + grow, 64).ok());
    REQUIRE(d.fill(parts[1].sequence, 900 + grow, 64).ok());
    const auto queries = queries_of(d, parts);
    REQUIRE(cuda::copy_buffers(d.buffers.view(), step.buffers.view(), stream).ok());
    REQUIRE(cudaMemcpyAsync(step.queries.as<float>(), queries.data(),
                            queries.size() * sizeof(float), cudaMemcpyDefault,
                            stream) == cudaSuccess);
    std::vector<float> first;
    for (int run = 0; run < 3; ++run) {
      REQUIRE(cudaMemsetAsync(step.output.as<float>(), 0xff, queries.size() * sizeof(float),
                              stream) == cudaSuccess);
      REQUIRE(cudaGraphLaunch(replayable, stream) == cudaSuccess);
      REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
      const auto output = step.output.to_host<float>();
      if (run == 0) first = output;
      CHECK(same_bits(output, first));
    }
    const Attended slow =
        run_attend(d.cache.layer(0), {parts.data(), parts.size()}, queries, Path::oracle);
    CHECK(relative_l2(first, slow.output) < device_tolerance);
  }
  cudaGraphExecDestroy(replayable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_CASE("stale handles and left-out parts on the device", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(config());
  std::vector<StepPart> parts = {{d.create(), 1}, {d.create(), 1}};
  REQUIRE(d.fill(parts[0].sequence, 200, 128).ok());
  REQUIRE(d.fill(parts[1].sequence, 300, 128).ok());
  const auto queries = queries_of(d, parts);
  const Attended slow =
      run_attend(d.cache.layer(0), {parts.data(), parts.size()}, queries, Path::oracle);
  SECTION("a stale handle gives zeros, the other rows are as ever") {
    ++parts[0].sequence.generation;
  }
  SECTION("an index out of range too") { parts[0].sequence.index = 77; }
  Step step(d, parts, queries);
  REQUIRE(
      cuda::attend<Dims>(step.view, step.in, step.out, step.workspace.span(), {}, nullptr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const auto output = step.output.to_host<float>();
  const std::size_t row = output.size() / 2;
  const auto middle = output.begin() + static_cast<std::ptrdiff_t>(row);
  const bool both = parts[0].sequence.index == 0 && parts[0].sequence.generation == 1;
  if (!both) CHECK(std::all_of(output.begin(), middle, [](float x) { return x == 0.0f; }));
  CHECK(relative_l2({middle, output.end()}, {slow.output.begin() + static_cast<std::ptrdiff_t>(row),
                                             slow.output.end()}) < device_tolerance);
}

TEST_CASE("calls of different shapes take turns with one workspace", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(config());
  const std::vector<StepPart> parts = {{d.create(), 1}, {d.create(), 1}, {d.create(), 1}};
  for (const StepPart& part : parts) REQUIRE(d.fill(part.sequence, 1500, 128).ok());
  Step step(d, parts, queries_of(d, parts));
  cuda::AttendInputs one = step.in;
  one.num_parts = one.num_rows = 1;
  const Attended slow = run_attend(d.cache.layer(0), {parts.data(), parts.size()},
                                   queries_of(d, parts), Path::oracle);
  for (int turn = 0; turn < 3; ++turn) {
    REQUIRE(cuda::attend<Dims>(step.view, one, step.out, step.workspace.span(), {}, nullptr).ok());
    REQUIRE(cudaMemset(step.output.as<float>(), 0xff, step.output.span().size()) == cudaSuccess);
    REQUIRE(
        cuda::attend<Dims>(step.view, step.in, step.out, step.workspace.span(), {}, nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(relative_l2(step.output.to_host<float>(), slow.output) < device_tolerance);
  }
}

TEST_CASE("parts that the caller has no rows for are left out", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(config());
  std::vector<StepPart> parts = {{d.create(), 1}, {d.create(), 1}};
  REQUIRE(d.fill(parts[0].sequence, 200, 128).ok());
  REQUIRE(d.fill(parts[1].sequence, 300, 128).ok());
  const auto queries = queries_of(d, parts);
  const Attended slow =
      run_attend(d.cache.layer(0), {parts.data(), parts.size()}, queries, Path::oracle);
  parts[1].tokens = 100;
  Step step(d, parts, queries);
  REQUIRE(
      cuda::attend<Dims>(step.view, step.in, step.out, step.workspace.span(), {}, nullptr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const auto output = step.output.to_host<float>();
  const auto half = static_cast<std::ptrdiff_t>(output.size() / 2);
  CHECK(relative_l2({output.begin(), output.begin() + half},
                    {slow.output.begin(), slow.output.begin() + half}) < device_tolerance);
  CHECK(std::all_of(output.begin() + half, output.end(), [](float x) { return x != x; }));
}

TEST_CASE("what the host can see is refused on the host", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(config());
  const std::vector<StepPart> parts = {{d.create(), 1}};
  REQUIRE(d.fill(parts[0].sequence, 100, 128).ok());
  Step step(d, parts, queries_of(d, parts));
  const auto attend = [&](const cuda::AttendInputs& in, const cuda::AttendOutputs& out,
                          Span<std::byte> workspace, const AttendParams& params) {
    return cuda::attend<Dims>(step.view, in, out, workspace, params, nullptr).code;
  };
  const auto space = step.workspace.span();
  cuda::AttendInputs in = step.in;
  in.parts = nullptr;
  CHECK(attend(in, step.out, space, {}) == StatusCode::null_pointer);
  in = step.in;
  in.num_parts = 4;
  CHECK(attend(in, step.out, space, {}) == StatusCode::invalid_argument);
  in = step.in;
  in.queries.head_stride = 63;
  CHECK(attend(in, step.out, space, {}) == StatusCode::invalid_argument);
  CHECK(attend(step.in, {}, space, {}) == StatusCode::null_pointer);
  CHECK(attend(step.in, step.out, {space.data(), space.size() - 1}, {}) ==
        StatusCode::buffer_too_small);
  AttendParams params;
  params.softmax_scale = NAN;
  CHECK(attend(step.in, step.out, space, params) == StatusCode::invalid_argument);
  CHECK(cuda::attend<cuda::HeadDims<128>>(step.view, step.in, step.out, space, {}, nullptr).code ==
        StatusCode::unsupported);
}
