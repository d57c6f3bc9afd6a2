/// One captured launch, replayed after the lengths have changed; refusals; and the same bits from
/// run to run.
#include <cuda_runtime.h>

#include "cuda/attend_check.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

using Dims = cuda::HeadDims<64>;
using D = Driver<PagedLayout<>, Kivi2>;

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
    needed = *cuda::attend_workspace_bytes(view, in);
    workspace = DeviceBytes(needed + guard_bytes);
    REQUIRE(cudaMemset(workspace.as<std::byte>(), 0x5a, needed + guard_bytes) == cudaSuccess);
    REQUIRE(cuda::clear_workspace(lent(), nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  }
  /// What the call may use; the bytes behind it are to stay as they are.
  [[nodiscard]] Span<std::byte> lent() const { return {workspace.as<std::byte>(), needed}; }
  [[nodiscard]] bool guard_is_whole() const {
    const auto bytes = workspace.to_host<std::uint8_t>();
    return std::all_of(bytes.end() - guard_bytes, bytes.end(), [](int x) { return x == 0x5a; });
  }
  static constexpr int guard_bytes = 8192;
  std::size_t needed = 0;
};

std::vector<float> queries_of(const D& d, const std::vector<StepPart>& parts) {
  std::vector<float> queries;
  for (const StepPart& part : parts) {
    const auto rows = query_rows(d.shape(), 5, d.length(part.sequence) - 1, 1);
    queries.insert(queries.end(), rows.begin(), rows.end());
  }
  return queries;
}

/// Two sequences with one query row each, and what the oracle says of them.
struct TwoRows {
  D d{device_config(8, 2, 64, 2000)};
  std::vector<StepPart> parts{{d.create(), 1}, {d.create(), 1}};
  std::vector<float> queries, expected;

  TwoRows() {
    REQUIRE(d.fill(parts[0].sequence, 200, 128).ok());
    REQUIRE(d.fill(parts[1].sequence, 300, 128).ok());
    queries = queries_of(d, parts);
    const Attended slow =
        run_attend(d.cache.layer(0), {parts.data(), parts.size()}, queries, Path::oracle);
    REQUIRE(slow.status.ok());
    expected = slow.output;
  }

  /// Of the parts as they are now, with the queries of before.
  [[nodiscard]] std::vector<float> attend() const {
    Step step(d, parts, queries);
    REQUIRE(cuda::attend<Dims>(step.view, step.in, step.out, step.lent(), {}, nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(step.guard_is_whole());
    return step.output.to_host<float>();
  }
};

/// The values of row 0 or 1 of two.
std::vector<float> row_of(const std::vector<float>& values, int row) {
  const auto size = static_cast<std::ptrdiff_t>(values.size() / 2);
  return {values.begin() + row * size, values.begin() + (row + 1) * size};
}

bool all_zero(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return x == 0.0f; });
}

/// DeviceBytes begin as NaN.
bool all_untouched(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return x != x; });
}

}  // namespace

TEST_CASE("a captured launch serves the lengths it finds", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(device_config(8, 2, 64, 2000));
  const std::vector<StepPart> parts = {{d.create(), 1}, {d.create(), 1}};
  REQUIRE(d.fill(parts[0].sequence, 70, 64).ok());
  REQUIRE(d.fill(parts[1].sequence, 900, 128).ok());
  Step step(d, parts, queries_of(d, parts));

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replayable;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  REQUIRE(cuda::attend<Dims>(step.view, step.in, step.out, step.lent(), {}, stream).ok());
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

TEST_CASE("stale handles and indices out of range on the device", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  TwoRows rows;
  SECTION("a stale handle gives zeros, the other rows are as ever") {
    ++rows.parts[0].sequence.generation;
  }
  SECTION("an index out of range too") { rows.parts[0].sequence.index = 77; }
  const auto output = rows.attend();
  CHECK(all_zero(row_of(output, 0)));
  CHECK(relative_l2(row_of(output, 1), row_of(rows.expected, 1)) < device_tolerance);
}

TEST_CASE("calls of different shapes take turns with one workspace", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(device_config(8, 2, 64, 2000));
  const std::vector<StepPart> parts = {{d.create(), 1}, {d.create(), 1}, {d.create(), 1}};
  for (const StepPart& part : parts) REQUIRE(d.fill(part.sequence, 1500, 128).ok());
  Step step(d, parts, queries_of(d, parts));
  cuda::AttendInputs one = step.in;
  one.num_parts = one.num_rows = 1;
  const Attended slow = run_attend(d.cache.layer(0), {parts.data(), parts.size()},
                                   queries_of(d, parts), Path::oracle);
  for (int turn = 0; turn < 3; ++turn) {
    REQUIRE(cuda::attend<Dims>(step.view, one, step.out, step.lent(), {}, nullptr).ok());
    REQUIRE(cudaMemset(step.output.as<float>(), 0xff, step.output.span().size()) == cudaSuccess);
    REQUIRE(cuda::attend<Dims>(step.view, step.in, step.out, step.lent(), {}, nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(relative_l2(step.output.to_host<float>(), slow.output) < device_tolerance);
  }
}

TEST_CASE("parts that the caller has no rows for are left out", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  TwoRows rows;
  rows.parts[1].tokens = 100;
  const auto output = rows.attend();
  CHECK(relative_l2(row_of(output, 0), row_of(rows.expected, 0)) < device_tolerance);
  CHECK(all_untouched(row_of(output, 1)));
}

TEST_CASE("what the host can see is refused on the host", "[cuda][graph]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  D d(device_config(8, 2, 64, 2000));
  const std::vector<StepPart> parts = {{d.create(), 1}};
  REQUIRE(d.fill(parts[0].sequence, 100, 128).ok());
  Step step(d, parts, queries_of(d, parts));
  const auto attend = [&](const cuda::AttendInputs& in, const cuda::AttendOutputs& out,
                          Span<std::byte> workspace, const AttendParams& params) {
    return cuda::attend<Dims>(step.view, in, out, workspace, params, nullptr).code;
  };
  const auto space = step.lent();
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
