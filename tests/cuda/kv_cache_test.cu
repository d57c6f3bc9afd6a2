/// A cache on the device: attention over what it has appended, graphs, numbers that are none.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cuda/cache_pair.cuh"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

struct Words {
  std::uint32_t* to;
  const std::uint32_t* from;
  std::size_t count;

  Words(Span<std::byte> to_bytes, Span<std::byte> from_bytes)
      : to(reinterpret_cast<std::uint32_t*>(to_bytes.data())),
        from(reinterpret_cast<const std::uint32_t*>(from_bytes.data())),
        count(to_bytes.size() / sizeof *to) {}
};

/// Lets the kernel behind it begin, and writes all of `from` about a millisecond later.
__global__ void write_late(Words first, Words second, Words third) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
  const long long begin = clock64();
  while (clock64() - begin < 1'500'000) {
  }
  for (const Words& words : {first, second, third}) {
    for (std::size_t i = threadIdx.x; i < words.count; i += blockDim.x) {
      if (words.to[i] != words.from[i]) words.to[i] = words.from[i];
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("attention over what the device has appended", "[cuda][kv_cache]", Kivi2,
                   Int4Rotated, Fp8) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<TestType> pair(1);
  const SequenceId a = pair.create(), b = pair.create();
  pair.fill(a, 300, 128);
  pair.step({{b, 100}, {a, 1}});
  for (int i = 0; i < 3; ++i) pair.step({{a, 1}, {b, 1}});
  check_attention(pair, {{a, 1}, {b, 1}});
  REQUIRE(pair.host.cache.truncate(a, 150).ok());
  REQUIRE(pair.device.truncate(a, 150, nullptr).ok());
  const SequenceId c = *pair.host.cache.fork(b);
  REQUIRE(*pair.device.fork(b, nullptr) == c);
  pair.step({{c, 5}, {a, 2}});
  check_attention(pair, {{c, 1}, {a, 1}, {b, 1}});
}

TEMPLATE_TEST_CASE("attention that begins while the append in front ends", "[cuda][kv_cache]",
                   Kivi2, Int8) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<TestType> pair(1);
  const SequenceId a = pair.create(), b = pair.create();
  pair.fill(a, 500, 128);
  pair.fill(b, 60, 60);
  for (int i = 0; i < 80; ++i) {  // some of them seal, and begin blocks
    const int rows = i % 2 == 0 ? 1 : 3;
    const std::vector<StepPart> parts{{a, rows}, {b, rows}};
    const TwinInputs in(pair.random, pair.shape(0), 2 * rows, Scalar::f16);
    Query query(pair.device.layer(0), parts, 5);
    REQUIRE(pair.device.begin_step(parts, nullptr).ok());
    query.in.lengths_are_settled = true;
    REQUIRE(pair.device.append(0, in.on_device(), nullptr).ok());
    REQUIRE(query.launch(pair.device.layer(0), nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const std::vector<float> early = query.output.template to_host<float>();
    query.in.lengths_are_settled = false;
    REQUIRE(query.launch(pair.device.layer(0), nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    REQUIRE(query.output.template to_host<float>() == early);
    REQUIRE(pair.device.commit_step(nullptr).ok());
  }
}

TEMPLATE_TEST_CASE("attention that begins before the append in front writes, and fails a sequence",
                   "[cuda][kv_cache]", Kivi2, Int8) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<TestType> pair(1);
  const SequenceId bad = pair.create(), b = pair.create(), c = pair.create();
  pair.fill(bad, 300, 128);
  pair.fill(b, 700, 128);
  pair.fill(c, 126, 128);
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  // Of a step's three parts, equally many rows each.
  const auto of_part = [](const std::vector<float>& output, int part) {
    const auto size = static_cast<std::ptrdiff_t>(output.size() / 3);
    return std::vector<float>(output.begin() + part * size, output.begin() + (part + 1) * size);
  };
  const auto others = [&](const std::vector<float>& output) {
    return std::pair{of_part(output, 1), of_part(output, 2)};
  };
  enum class Round { good, failing, failed };
  const auto step = [&](Round round, int rows, int thread_blocks) {
    CAPTURE(static_cast<int>(round), rows, thread_blocks);
    const std::vector<StepPart> parts{{bad, rows}, {b, rows}, {c, rows}};
    const bool is_good = round == Round::good;
    const Span<const StepPart> host_parts(parts.data() + (is_good ? 0 : 1), is_good ? 3 : 2);
    TwinInputs in(pair.random, pair.shape(0), 3 * rows, Scalar::f32);
    terse::AppendInputs host_in = in.on_host();
    if (!is_good) {
      host_in.keys.data = in.keys.host.data() + in.keys.row_stride * rows * 4;
      host_in.values.data = in.values.host.data() + in.values.row_stride * rows * 4;
    }
    REQUIRE(pair.host.cache.begin_step(host_parts).ok());
    REQUIRE(pair.host.cache.append(0, host_in).ok());
    if (round == Round::failing) {
      in.values.put(rows - 1, 1, 33, NAN);
      in.values.send();
    }
    REQUIRE(pair.device.begin_step(parts, nullptr).ok());
    const DeviceBuffers late(pair.on_device());  // as before the append
    REQUIRE(pair.device.append(0, in.on_device(), nullptr).ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const auto view = pair.device.layer(0);
    const auto late_view = cuda::rebase(view, pair.on_device(), late.view());
    Query query(view, parts, 5);
    const auto attend = [&](const auto& of, bool settled) {
      query.in.lengths_are_settled = settled;
      REQUIRE(cuda::attend<Dims>(of, query.in, query.out, query.workspace.span(), {}, stream,
                                 {.thread_blocks = thread_blocks})
                  .ok());
      REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
      const std::vector<float> output = query.output.template to_host<float>();
      REQUIRE(cudaMemset(query.output.template as<float>(), 0xff, query.output.span().size()) ==
              cudaSuccess);
      return output;
    };
    // Behind the append, where all can see whether it has failed.
    const std::vector<float> behind = attend(view, false);
    const std::vector<float> own_queries(
        query.queries.begin() + (is_good ? 0 : rows * query_heads * dim), query.queries.end());
    const Attended slow =
        run_attend(pair.host.cache.layer(0), host_parts, own_queries, Path::oracle);
    REQUIRE(slow.status.ok());
    std::vector<float> seen = behind;
    if (!is_good) {
      const std::vector<float> none = of_part(behind, 0);
      CHECK(std::all_of(none.begin(), none.end(), [](float x) { return x == 0.0f; }));
      seen.erase(seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(none.size()));
    }
    CHECK(relative_l2(seen, slow.output) < device_tolerance);
    // Ahead of what the append writes: rows of others, and counters, are as if it had not failed.
    const Buffers to = late.view(), from = pair.on_device();
    write_late<<<1, 1024, 0, stream>>>({to.pages, from.pages}, {to.tails, from.tails},
                                       {to.state, from.state});
    REQUIRE(cudaGetLastError() == cudaSuccess);
    const std::vector<float> ahead = attend(late_view, true);
    CHECK(others(ahead) == others(behind));
    if (round != Round::failing) CHECK(ahead == behind);
    CHECK(attend(view, true) == behind);
    REQUIRE(pair.host.cache.commit_step().ok());
    REQUIRE(pair.device.commit_step(nullptr).ok());
  };
  for (const int thread_blocks : {0, 1, 3, 5, 16}) {
    const int rows = thread_blocks % 2 == 0 ? 1 : 3;
    step(Round::good, rows, thread_blocks);
    const std::int64_t length = *pair.device.length(bad);
    const std::vector<float> before = attend_on_device(pair.device, {{bad, 1}}, 9);
    step(Round::failing, rows, thread_blocks);
    step(Round::failed, 1, thread_blocks);
    const Status found = pair.device.recover(bad, nullptr);
    CHECK(found.code == StatusCode::not_finite);
    CHECK(pair.device.recover(b, nullptr).ok());
    CHECK(pair.device.recover(c, nullptr).ok());
    CHECK(*pair.device.length(bad) == length);
    CHECK(attend_on_device(pair.device, {{bad, 1}}, 9) == before);
    for (const SequenceId id : {bad, b, c}) CHECK(pair.masks_agree(id));
  }
  step(Round::good, 3, 0);
  cudaStreamDestroy(stream);
}

TEMPLATE_TEST_CASE("appends read what the kernel in front writes late", "[cuda][kv_cache]", Kivi2,
                   Int8) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<TestType> pair(1);
  const SequenceId id = pair.create();
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  for (const int rows : {128, 1, 63, 64}) {
    CAPTURE(rows);
    const std::vector<StepPart> parts{{id, rows}};
    const auto shape = pair.shape(0);
    const TwinInputs in(pair.random, shape, rows, Scalar::f16, Numbers::normal, true);
    TwinInputs late(pair.random, shape, rows, Scalar::f16, Numbers::normal, true);
    REQUIRE(pair.host.cache.begin_step(parts).ok());
    REQUIRE(pair.host.cache.append(0, in.on_host()).ok());
    REQUIRE(pair.device.begin_step(parts, stream).ok());
    write_late<<<1, 1024, 0, stream>>>({late.keys.device.span(), in.keys.device.span()},
                                       {late.values.device.span(), in.values.device.span()},
                                       {{}, {}});
    REQUIRE(cudaGetLastError() == cudaSuccess);
    REQUIRE(pair.device.append(0, late.on_device(), stream).ok());
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(pair.difference(1) == "");
    REQUIRE(pair.host.cache.commit_step().ok());
    REQUIRE(pair.device.commit_step(stream).ok());
  }
  cudaStreamDestroy(stream);
}

TEMPLATE_TEST_CASE("prompts of whole blocks with what is no number fail their sequence",
                   "[cuda][kv_cache]", Kivi2, Int8) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  struct Bad {
    Scalar type;
    std::uint16_t bits;
    bool in_values;
  };
  for (const Bad& bad : {Bad{Scalar::f16, 0x7e00, true}, Bad{Scalar::f16, 0xfc00, false},
                         Bad{Scalar::bf16, 0x7fc0, false}, Bad{Scalar::bf16, 0x7f80, true}}) {
    CAPTURE(bad.bits, bad.in_values);
    Pair<TestType> pair(1);
    const SequenceId a = pair.create(), b = pair.create();
    pair.fill(a, 64, 64);
    const std::vector<float> before = attend_on_device(pair.device, {{a, 1}}, 9);
    const std::vector<StepPart> parts{{a, 128}, {b, 128}};
    TwinInputs in(pair.random, pair.shape(0), 256, bad.type, Numbers::normal, true);
    TwinRows& rows = bad.in_values ? in.values : in.keys;
    const auto at = static_cast<std::size_t>(100 * rows.row_stride + rows.head_stride + 33);
    std::memcpy(rows.host.data() + 2 * at, &bad.bits, sizeof bad.bits);
    rows.send();
    REQUIRE(pair.device.begin_step(parts, nullptr).ok());
    REQUIRE(pair.device.append(0, in.on_device(), nullptr).ok());
    REQUIRE(pair.device.commit_step(nullptr).ok());
    CHECK(pair.device.recover(a, nullptr).code == StatusCode::not_finite);
    CHECK(pair.device.recover(b, nullptr).ok());
    CHECK(*pair.device.length(a) == 64);
    CHECK(*pair.device.length(b) == 128);
    CHECK(attend_on_device(pair.device, {{a, 1}}, 9) == before);
  }
}

TEST_CASE("appends and attention of a captured graph serve later steps", "[cuda][kv_cache]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(2);
  const SequenceId a = pair.create(), b = pair.create();
  pair.fill(a, 127, 64);
  pair.fill(b, 60, 64);
  const std::vector<StepPart> parts = {{a, 1}, {b, 1}};
  TwinInputs inputs(pair.random, pair.shape(0), 2, Scalar::f16);
  const Query query(pair.device.layer(0), parts, 3);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replayable = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  for (int i = 0; i < 140; ++i) {
    const TwinInputs fresh(pair.random, pair.shape(0), 2, Scalar::f16);
    // The graph's inputs stay where they are; numbers and strides are those of the first.
    for (int side = 0; side < 2; ++side) {
      TwinRows& own = side == 0 ? inputs.keys : inputs.values;
      const TwinRows& other = side == 0 ? fresh.keys : fresh.values;
      for (std::size_t n = 0; n < own.host.size() && n < other.host.size(); ++n) {
        own.host[n] = other.host[n];
      }
      REQUIRE(cudaMemcpy(own.device.as<std::byte>(), own.host.data(), own.host.size(),
                         cudaMemcpyDefault) == cudaSuccess);
    }
    REQUIRE(pair.host.cache.begin_step(parts).ok());
    REQUIRE(pair.device.begin_step(parts, stream).ok());
    for (int layer = 0; layer < 2; ++layer) {
      REQUIRE(pair.host.cache.append(layer, inputs.on_host()).ok());
    }
    if (replayable == nullptr) {
      REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
      for (int layer = 0; layer < 2; ++layer) {
        REQUIRE(pair.device.append(layer, inputs.on_device(), stream).ok());
      }
      REQUIRE(query.launch(pair.device.layer(0), stream).ok());
      // Bookkeeping would be replayed with old tables.
      CHECK(pair.device.abandon_step(stream).code == StatusCode::wrong_phase);
      CHECK(pair.device.create_sequence(stream).status().code == StatusCode::wrong_phase);
      REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
      REQUIRE(cudaGraphInstantiate(&replayable, graph, 0) == cudaSuccess);
    } else {
      CHECK(pair.device.commit_step(stream).code == StatusCode::wrong_phase);
      REQUIRE(pair.device.appended_by_graph().ok());
    }
    REQUIRE(cudaGraphLaunch(replayable, stream) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    if (i % 20 == 0 || i > 130) {
      const Attended slow = run_attend(pair.host.cache.layer(0), {parts.data(), parts.size()},
                                       query.queries, Path::oracle);
      REQUIRE(slow.status.ok());
      CHECK(relative_l2(query.output.to_host<float>(), slow.output) < device_tolerance);
      REQUIRE(pair.difference(4) == "");
    }
    REQUIRE(pair.host.cache.commit_step().ok());
    REQUIRE(pair.device.commit_step(stream).ok());
  }
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  REQUIRE(pair.difference(4) == "");
  // A replay outside a step finds no tokens to append.
  REQUIRE(cudaGraphLaunch(replayable, stream) == cudaSuccess);
  CHECK(pair.device.recover(a, stream).code == StatusCode::wrong_phase);
  CHECK(pair.device.recover(b, stream).code == StatusCode::wrong_phase);
  CHECK(pair.device.recover(a, stream).ok());
  CHECK(pair.difference(4) == "");
  cudaGraphExecDestroy(replayable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_CASE("graphs that do not serve their step", "[cuda][kv_cache]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(2);
  const SequenceId a = pair.create(), b = pair.create(), c = pair.create();
  pair.step({{a, 100}, {b, 100}, {c, 100}});
  cudaStream_t stream;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  const auto begin = [&](const std::vector<StepPart>& parts) {
    REQUIRE(pair.device.begin_step(parts, stream).ok());
  };
  const TwinInputs inputs(pair.random, pair.shape(0), 32, Scalar::f16);
  // Captured, and not launched, in a step of {8, 1} tokens.
  const auto capture = [&](int layers) {
    cudaGraph_t graph;
    cudaGraphExec_t replayable;
    begin({{a, 8}, {b, 1}});
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    for (int layer = 0; layer < layers; ++layer) {
      REQUIRE(pair.device.append(layer, inputs.on_device(), stream).ok());
    }
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&replayable, graph, 0) == cudaSuccess);
    cudaGraphDestroy(graph);
    return replayable;
  };
  const auto replayed = [&](cudaGraphExec_t graph) {
    REQUIRE(cudaGraphLaunch(graph, stream) == cudaSuccess);
    REQUIRE(pair.device.appended_by_graph().ok());
    REQUIRE(pair.device.commit_step(stream).ok());
  };
  const auto failed = [&](SequenceId id) {
    const Status s = pair.device.recover(id, stream);
    CHECK((s.ok() || s.code == StatusCode::wrong_phase));
    CHECK(pair.device.recover(id, stream).ok());
    return !s.ok();
  };
  cudaGraphExec_t graph = nullptr;
  SECTION("a step that was captured and never launched") {
    graph = capture(2);
    REQUIRE(pair.device.commit_step(stream).ok());
    CHECK(failed(a));
    CHECK(failed(b));
    CHECK(*pair.device.length(a) == 100);
  }
  SECTION("more parts than were captured") {
    graph = capture(2);
    REQUIRE(pair.device.abandon_step(stream).ok());
    begin({{a, 8}, {b, 1}, {c, 1}});
    replayed(graph);
    CHECK(failed(c));
    CHECK_FALSE(failed(a));
    CHECK(*pair.device.length(c) == 100);
    CHECK(*pair.device.length(b) == 101);
    REQUIRE(pair.device.truncate(a, 100, stream).ok());
    REQUIRE(pair.device.truncate(b, 100, stream).ok());
  }
  SECTION("more rows than were captured") {
    graph = capture(2);
    REQUIRE(pair.device.abandon_step(stream).ok());
    begin({{a, 8}, {b, 8}});
    replayed(graph);
    CHECK_FALSE(failed(a));
    CHECK(failed(b));
    REQUIRE(pair.device.truncate(a, 100, stream).ok());
  }
  SECTION("a layer that was not captured") {
    graph = capture(1);
    REQUIRE(pair.device.abandon_step(stream).ok());
    begin({{a, 8}, {b, 1}});
    replayed(graph);
    CHECK(failed(a));
    CHECK(failed(b));
  }
  SECTION("a sequence that took the place of a captured one") {
    graph = capture(2);
    REQUIRE(pair.device.abandon_step(stream).ok());
    const SequenceId twin = *pair.device.fork(c, stream);
    REQUIRE(pair.device.release(a, stream).ok());
    REQUIRE(pair.device.create_sequence(stream)->index == a.index);
    REQUIRE(cudaGraphLaunch(graph, stream) == cudaSuccess);
    CHECK_FALSE(failed({a.index, a.generation + 1}));
    REQUIRE(pair.device.release({a.index, a.generation + 1}, stream).ok());
    REQUIRE(pair.device.release(twin, stream).ok());
    cudaGraphExecDestroy(graph);
    cudaStreamDestroy(stream);
    return;
  }
  SECTION("a sequence that took the place of one beyond the captured parts") {
    graph = capture(2);
    REQUIRE(pair.device.abandon_step(stream).ok());
    pair.step({{a, 1}, {b, 1}, {c, 1}});
    REQUIRE(pair.device.release(c, stream).ok());
    const SequenceId fresh = *pair.device.create_sequence(stream);
    REQUIRE(fresh.index == c.index);
    REQUIRE(cudaGraphLaunch(graph, stream) == cudaSuccess);
    CHECK_FALSE(failed(fresh));
    CHECK(failed(a));
    CHECK(*pair.device.length(a) == 101);
    cudaGraphExecDestroy(graph);
    cudaStreamDestroy(stream);
    return;
  }
  SECTION("a replayed step that is abandoned untold") {
    graph = capture(2);
    REQUIRE(pair.device.abandon_step(stream).ok());
    begin({{a, 8}, {b, 1}});
    REQUIRE(cudaGraphLaunch(graph, stream) == cudaSuccess);
    REQUIRE(pair.device.abandon_step(stream).ok());
  }
  // Whatever happened, all go on as if it had not.
  REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
  for (const SequenceId id : {a, b, c}) CHECK(pair.masks_agree(id));
  pair.step({{a, 1}, {b, 1}, {c, 1}});
  for (const SequenceId id : {a, b, c}) CHECK(pair.masks_agree(id));
  check_attention(pair, {{a, 1}, {b, 1}, {c, 1}});
  CHECK(pair.device.memory_usage().live_tokens == pair.host.cache.memory_usage().live_tokens);
  cudaGraphExecDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_CASE("a device's tables are no host cache's", "[cuda][kv_cache]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(1);
  pair.fill(pair.create(), 200, 128);
  const OwnedBuffers copy = pair.download();
  const auto attached = KVCache<PagedLayout<>, Kivi2>::attach(pair.host.config, copy.view());
  CHECK(attached.status().code == StatusCode::mismatch);
}

TEMPLATE_TEST_CASE("a NaN fails its sequence and nothing else", "[cuda][kv_cache]", Kivi2,
                   (KeyValue<Kivi4::key_codec, Int8>), Int4Rotated) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  PolicyConfig<PolicyOf<TestType>> policy;
  if constexpr (!std::is_same_v<TestType, Int4Rotated>) policy.tail = TailSpec{.min_tokens = 1};
  Twin<PagedLayout<>, TestType> twin(config_of(2), {policy});
  Random random(5);
  const SequenceId bad = *twin.host.cache.create_sequence();
  const SequenceId good = *twin.host.cache.create_sequence();
  REQUIRE(*twin.device.create_sequence(nullptr) == bad);
  REQUIRE(*twin.device.create_sequence(nullptr) == good);
  const auto begin = [&](const std::vector<StepPart>& parts) {
    REQUIRE(twin.host.cache.begin_step(parts).ok());
    REQUIRE(twin.device.begin_step(parts, nullptr).ok());
  };
  const auto commit = [&] {
    REQUIRE(twin.host.cache.commit_step().ok());
    REQUIRE(twin.device.commit_step(nullptr).ok());
  };
  for (const int tokens : {100, 27}) {
    begin({{bad, tokens}, {good, tokens}});
    for (int layer = 0; layer < 2; ++layer) {
      REQUIRE(twin.append(random, layer, 2 * tokens, Scalar::f32).ok());
    }
    commit();
  }
  const int steps = GENERATE(1, 90, 250);
  const bool in_values = GENERATE(false, true);
  CAPTURE(steps, in_values);
  const float none = in_values ? std::numeric_limits<float>::infinity() : NAN;
  for (int i = 0; i < steps; ++i) {
    const std::vector<StepPart> both = {{bad, 1}, {good, 1}};
    REQUIRE(twin.host.cache.begin_step({&both[1], 1}).ok());
    REQUIRE(twin.device.begin_step(both, nullptr).ok());
    for (int layer = 0; layer < 2; ++layer) {
      TwinInputs in(random, twin.shape(0), 2, Scalar::f32);
      if (i == 0 && layer == 1) {
        (in_values ? in.values : in.keys).put(0, 1, 33, none);
        (in_values ? in.values : in.keys).send();
      }
      REQUIRE(twin.device.append(layer, in.on_device(), nullptr).ok());
      terse::AppendInputs own = in.on_host();
      own.keys.data = in.keys.host.data() + in.keys.row_stride * 4;
      own.values.data = in.values.host.data() + in.values.row_stride * 4;
      REQUIRE(twin.host.cache.append(layer, own).ok());
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }
    commit();
  }
  CHECK(*twin.device.length(bad) == 127 + steps);
  const auto output = attend_on_device(twin.device, {{bad, 1}}, 9);
  CHECK(std::all_of(output.begin(), output.end(), [](float x) { return x == 0.0f; }));

  SECTION("recover takes the sequence back") {
    const Status found = twin.device.recover(bad, nullptr);
    CHECK(found.code == StatusCode::not_finite);
    CHECK(found.detail == 1);
    CHECK(twin.device.recover(bad, nullptr).ok());
    CHECK(twin.device.recover(good, nullptr).ok());
    CHECK(*twin.device.length(bad) == 127);
    CHECK(twin.device.memory_usage().live_tokens == twin.host.cache.memory_usage().live_tokens);
    // Both go on: attention agrees with a host that never saw the step.
    for (int i = 0; i < 3; ++i) {
      begin({{bad, 30}, {good, 1}});
      for (int layer = 0; layer < 2; ++layer) {
        REQUIRE(twin.append(random, layer, 31, Scalar::f32).ok());
      }
      commit();
    }
    for (const SequenceId id : {bad, good}) {
      const StepPart part{id, 1};
      const Query query(twin.device.layer(0), {part}, 9);
      const Attended slow =
          run_attend(twin.host.cache.layer(0), {&part, 1}, query.queries, Path::oracle);
      REQUIRE(slow.status.ok());
      CHECK(relative_l2(attend_on_device(twin.device, {part}, 9), slow.output) < device_tolerance);
    }
  }
  SECTION("a twin has failed too, and recovers alone") {
    const auto twin_id = twin.device.fork(bad, nullptr);
    REQUIRE(twin_id.ok());
    CHECK(twin.device.recover(*twin_id, nullptr).code == StatusCode::not_finite);
    CHECK(*twin.device.length(*twin_id) == 127);
    CHECK(*twin.device.length(bad) == 127 + steps);
  }
  SECTION("a truncation that cuts nothing does not matter") {
    REQUIRE(twin.device.truncate(bad, 127 + steps, nullptr).ok());
    CHECK(twin.device.recover(bad, nullptr).code == StatusCode::not_finite);
  }
  SECTION("truncated unnoticed, it can only be released") {
    REQUIRE(twin.device.truncate(bad, 20, nullptr).ok());
    CHECK(twin.device.recover(bad, nullptr).code == StatusCode::stale_sequence);
    CHECK(twin.device.recover(bad, nullptr).code == StatusCode::stale_sequence);
    REQUIRE(twin.device.release(bad, nullptr).ok());
    const auto fresh = twin.device.create_sequence(nullptr);
    REQUIRE(fresh.ok());
    CHECK(twin.device.recover(*fresh, nullptr).ok());
  }
}

TEST_CASE("what the host can see of a device cache is refused there", "[cuda][kv_cache]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  using C = cuda::KVCache<PagedLayout<>, Kivi2>;
  Pair<Kivi2> pair(1);
  C& cache = pair.device;
  const SequenceId id = pair.create();
  const StepPart part{id, 3};
  TwinInputs in(pair.random, pair.shape(0), 3, Scalar::f32);
  CHECK(cache.append(0, in.on_device(), nullptr).code == StatusCode::wrong_phase);
  CHECK(cache.appended_by_graph().code == StatusCode::wrong_phase);
  REQUIRE(cache.begin_step({&part, 1}, nullptr).ok());
  CHECK(cache.recover(id, nullptr).code == StatusCode::wrong_phase);
  CHECK(cache.commit_step(nullptr).code == StatusCode::wrong_phase);
  CHECK(cache.append(1, in.on_device(), nullptr).code == StatusCode::invalid_argument);
  terse::AppendInputs wrong = in.on_device();
  wrong.keys.data = nullptr;
  CHECK(cache.append(0, wrong, nullptr).code == StatusCode::null_pointer);
  wrong = in.on_device();
  wrong.values.data = static_cast<const std::byte*>(wrong.values.data) + 1;
  CHECK(cache.append(0, wrong, nullptr).code == StatusCode::misaligned);
  wrong = in.on_device();
  wrong.values.head_stride = 5;
  CHECK(cache.append(0, wrong, nullptr).code == StatusCode::invalid_argument);
  REQUIRE(cache.append(0, in.on_device(), nullptr).ok());
  CHECK(cache.append(0, in.on_device(), nullptr).code == StatusCode::already_appended);
  REQUIRE(cache.commit_step(nullptr).ok());
  CHECK(*cache.length(id) == 3);
  REQUIRE(cache.release(id, nullptr).ok());
  CHECK(cache.recover(id, nullptr).code == StatusCode::stale_sequence);

  const auto plan = *C::plan(config_of(1));
  DeviceBytes pages(plan.pages_bytes), tails(plan.tails_bytes);
  DeviceBytes state(plan.state_bytes);
  AlignedBytes mirror(plan.mirror_bytes);
  const cuda::CacheBuffers buffers{pages.span(), tails.span(), state.span(), mirror.span()};
  cuda::CacheBuffers small = buffers;
  small.state = {small.state.data(), small.state.size() - 1};
  CHECK(C::create(config_of(1), small, nullptr).status().code == StatusCode::buffer_too_small);
  small = buffers;
  small.mirror = {small.mirror.data(), small.mirror.size() - 1};
  CHECK(C::create(config_of(1), small, nullptr).status().code == StatusCode::buffer_too_small);
  CacheConfig wide = config_of(1);
  wide.head_dim = 1024;
  wide.rope = {};
  CHECK(C::plan(wide).status().code == StatusCode::unsupported);
}
