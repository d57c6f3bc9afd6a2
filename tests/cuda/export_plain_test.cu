/// Export to an engine's pages on the device: the host's results, bit for bit.
#include "cuda/device_pages.cuh"
#include "cuda/user_codec.cuh"

using namespace terse;
using namespace terse::tests;

namespace {

/// Stored one channel further on: a basis that is not its own inverse.
struct ShiftedCodec : UserCodec {
  TERSE_HOST_DEVICE static void to_basis(const CodecContext& context, float* x) noexcept {
    const float last = x[context.width - 1];
    for (int c = context.width - 1; c > 0; --c) x[c] = x[c - 1];
    x[0] = last;
  }
  TERSE_HOST_DEVICE static void from_basis(const CodecContext& context, float* x) noexcept {
    const float first = x[0];
    for (int c = 0; c + 1 < context.width; ++c) x[c] = x[c + 1];
    x[context.width - 1] = first;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("exports are those of the host", "[cuda][export]", Identity, Fp8, Int8, Kivi2,
                   ShiftedCodec) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<TestType> pair(1);
  const SequenceId a = pair.create(), b = pair.create(), empty = pair.create();
  pair.fill(a, 600, 128);
  pair.fill(b, 65, 65);
  check_exports(pair, {b, empty, a});
  REQUIRE(pair.host.cache.truncate(a, 300).ok());
  REQUIRE(pair.device.truncate(a, 300, nullptr).ok());
  check_exports(pair, {a, b});
}

TEST_CASE("tails and sinks, in a basis and per head", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const auto check = [](auto&& pair) {
    const SequenceId a = pair.create(), b = pair.create();
    pair.fill(a, 333, 100);
    pair.fill(b, 20, 20);
    check_exports(pair, {a, b});
  };
  check(Pair<Int4Rotated, PagedLayout<HeadPaging::per_head>>(
      1, {.tail = TailSpec{.min_tokens = 70, .sink_tokens = 16}}));
  check(Pair<Kivi2, ContiguousLayout>(
      1, {.tail = TailSpec{.min_tokens = 1, .granule_tokens = 128, .sink_tokens = 5}}));
}

TEST_CASE("survivors of eviction on the device", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  const auto evict = [](auto& pair, SequenceId id) {
    const auto a = pair.host.cache.evict(id);
    const auto b = pair.device.evict(id, 0, nullptr);
    REQUIRE(a.ok());
    REQUIRE(b.ok());
  };
  SECTION("head by head") {
    using Heavy = Compose<Int8, H2O>;
    Pair<Heavy, PagedLayout<HeadPaging::per_head>> pair(
        1, {.eviction = {.heavy_tokens = 90, .recent_tokens = 40}});
    const SequenceId id = pair.create();
    for (int i = 0; i < 4; ++i) {
      const StepPart part{id, 100};
      pair.step({part});
      REQUIRE(pair.observe(pair.random, 0, {&part, 1}).ok());
      evict(pair, id);
      check_exports(pair, {id});
    }
    REQUIRE(pair.compact(id, false).ok());
    check_exports(pair, {id});
  }
  SECTION("another number in each unit") {
    Pair<Compose<Kivi4, AttentionGate>> pair(1, {.eviction = {.protected_tokens = 20}});
    const SequenceId id = pair.create();
    pair.fill(id, 400, 100);
    evict(pair, id);
    check_exports(pair, {id});
  }
  SECTION("a window") {
    CacheConfig config = config_of(1);
    config.rope.rotary_dim = dim;
    Pair<Compose<Kivi2, StreamingLLM>> pair(config,
                                            {.eviction = {.sink_tokens = 4, .window_tokens = 200}});
    const SequenceId id = pair.create();
    pair.fill(id, 500, 100);
    evict(pair, id);
    check_exports(pair, {id});
  }
}

TEST_CASE("thread blocks that have several entries each", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  CacheConfig config = config_of(1);
  config.num_kv_heads = 8;
  config.max_sequences = 70;
  config.max_tokens = 256;
  Pair<Int8> pair(config);
  std::vector<SequenceId> ids{pair.create()};
  pair.fill(ids[0], 230, 115);
  while (ids.size() < 66) {
    const auto twin = pair.host.cache.fork(ids[0]);
    REQUIRE(*pair.device.fork(ids[0], nullptr) == *twin);
    ids.push_back(*twin);
  }
  pair.step({{ids[65], 7}, {ids[1], 1}});
  check_export(pair, ids,
               EnginePages(PageOrder::nhd, Scalar::f16, 16, 8, dim, std::vector<int>(66, 240)),
               Dialect::dense);
}

TEST_CASE("a captured export and a captured import serve later steps", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Int4Rotated> pair(1);
  const SequenceId id = pair.create();
  EnginePages pages(PageOrder::hnd, Scalar::f16, 16, kv_heads, dim, {120});
  pages.fill(pair.random, 0, 120);
  const DevicePages on_device(pages);
  PageRange range{0, 40, 0};
  const DeviceBytes device_range = DeviceBytes::copy_of(&range, 1);
  const DeviceBytes rows(40 * sizeof(std::int64_t));
  const Span<std::int64_t> found(rows.as<std::int64_t>(), 40);
  EnginePages out(PageOrder::nhd, Scalar::bf16, 16, kv_heads, dim, {120});
  const DevicePages device_out(out);
  const DeviceExport call({id}, kv_heads);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replayable = nullptr;
  REQUIRE(cudaStreamCreate(&stream) == cudaSuccess);
  for (int i = 0; i < 3; ++i) {
    range.first_place = 40 * i;
    REQUIRE(cudaMemcpy(device_range.as<PageRange>(), &range, sizeof range, cudaMemcpyDefault) ==
            cudaSuccess);
    const StepPart part{id, 40};
    REQUIRE(pair.device.begin_step({&part, 1}, stream).ok());
    if (replayable == nullptr) {
      REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
      REQUIRE(cuda::find_source_rows(on_device.view(Dialect::csr), device_range.as<PageRange>(), 1,
                                     found, stream)
                  .ok());
      REQUIRE(pair.device
                  .append(0,
                          *inputs_from_pages(on_device.view(Dialect::csr), pair.shape(0),
                                             on_device.key_tensor(), on_device.value_tensor(),
                                             {found.data(), found.size()}),
                          stream)
                  .ok());
      REQUIRE(call.launch(pair.device.layer(0), device_out, Dialect::csr, stream).ok());
      REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
      REQUIRE(cudaGraphInstantiate(&replayable, graph, 0) == cudaSuccess);
    } else {
      REQUIRE(pair.device.appended_by_graph().ok());
    }
    REQUIRE(cudaGraphLaunch(replayable, stream) == cudaSuccess);
    REQUIRE(pair.device.commit_step(stream).ok());
    REQUIRE(cudaStreamSynchronize(stream) == cudaSuccess);
    std::vector<std::int64_t> own_rows(40);
    REQUIRE(find_source_rows(pages.view(Dialect::csr), {&range, 1}, own_rows).ok());
    REQUIRE(pair.host.cache.begin_step({&part, 1}).ok());
    REQUIRE(pair.host.cache
                .append(0, *inputs_from_pages(pages.view(Dialect::csr), pair.shape(0),
                                              pages.key_tensor(), pages.value_tensor(), own_rows))
                .ok());
    REQUIRE(pair.host.cache.commit_step().ok());
    REQUIRE(pair.difference(4) == "");
    REQUIRE(export_plain(pair.host.cache.layer(0), {&id, 1}, out.view(Dialect::csr),
                         {out.key_tensor(), out.value_tensor()})
                .ok());
    CHECK(device_out.equals(out));
    CHECK(call.tokens.to_host<std::int32_t>() == std::vector<std::int32_t>(2, 40 * (i + 1)));
  }
  cudaGraphExecDestroy(replayable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_CASE("units that cannot be exported say why and write nothing else", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Compose<Kivi4, AttentionGate>> pair(1, {.eviction = {.protected_tokens = 20}});
  const SequenceId a = pair.create(), b = pair.create();
  pair.fill(a, 200, 100);
  pair.fill(b, 40, 40);
  std::vector<SequenceId> ids{a, b};
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, kv_heads, dim, {200, 40});
  StatusCode of_a = StatusCode::ok;
  SECTION("a table row that is too short") {
    pages.numbers[0].pop_back();
    of_a = StatusCode::buffer_too_small;
  }
  SECTION("a page that does not exist") {
    pages.numbers[0].back() = GENERATE(false, true) ? -1 : pages.num_pages;
    of_a = StatusCode::invalid_argument;
  }
  SECTION("a handle that never was") {
    ids[0].generation += 1;
    of_a = StatusCode::stale_sequence;
  }
  SECTION("an index out of range") {
    ids[0].index = GENERATE(-1, 4);
    of_a = StatusCode::stale_sequence;
  }
  SECTION("a step that is not appended") {
    const StepPart part{a, 1};
    REQUIRE(pair.device.begin_step({&part, 1}, nullptr).ok());
    of_a = StatusCode::wrong_phase;
  }
  pages.write_tables();
  const DevicePages on_device(pages);
  const DeviceExport call(ids, kv_heads);
  REQUIRE(call.launch(pair.device.layer(0), on_device, Dialect::csr).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  const auto tokens = call.tokens.to_host<std::int32_t>();
  CHECK(tokens[0] == -static_cast<int>(of_a));
  CHECK(tokens[1] == -static_cast<int>(of_a));
  CHECK(tokens[2] == 40);
  CHECK(tokens[3] == 40);
  // b, in the pages of table row 1, is all that has been written.
  pages.numbers[0] = pages.numbers[1];
  pages.write_tables();
  REQUIRE(export_plain(pair.host.cache.layer(0), {&b, 1}, pages.view(Dialect::csr),
                       {pages.key_tensor(), pages.value_tensor()})
              .ok());
  CHECK(on_device.equals(pages));
}

TEST_CASE("a unit with fewer tokens fits where another does not", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Compose<Kivi4, AttentionGate>> pair(1, {.eviction = {.protected_tokens = 20}});
  const SequenceId id = pair.create();
  int n = 0, m = 0;
  for (int length = 100; n == m; length += 50) {
    pair.fill(id, length, 100);
    REQUIRE(pair.host.cache.evict(id).ok());
    REQUIRE(pair.device.evict(id, 0, nullptr).ok());
    const auto r = pair.host.cache.layer(0);
    n = static_cast<int>(r.count_live(id.index, 0, length));
    m = static_cast<int>(r.count_live(id.index, 1, length));
  }
  EnginePages pages(PageOrder::nhd, Scalar::f16, 1, kv_heads, dim, {std::min(n, m)});
  const DevicePages on_device(pages);
  const DeviceExport call({id}, kv_heads);
  REQUIRE(call.launch(pair.device.layer(0), on_device, Dialect::csr).ok());
  const int code = -static_cast<int>(StatusCode::buffer_too_small);
  CHECK(call.tokens.to_host<std::int32_t>() ==
        std::vector<std::int32_t>{n < m ? n : code, m < n ? m : code});
}

TEST_CASE("what the host can see of an export is refused there", "[cuda][export]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Int8> pair(1);
  const SequenceId id = pair.create();
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, kv_heads, dim, {64});
  const DevicePages on_device(pages);
  const DeviceBytes ids = DeviceBytes::copy_of(&id, 1);
  DeviceBytes tokens(kv_heads * sizeof(std::int32_t));
  const PlainOutputs good{on_device.key_tensor(), on_device.value_tensor(),
                          tokens.as<std::int32_t>()};
  const PlainPages view = on_device.view(Dialect::csr);
  const auto code = [&](const PlainOutputs& out, int count = 1, const PlainPages* of = nullptr) {
    return cuda::export_plain(pair.device.layer(0), ids.as<SequenceId>(), count,
                              of == nullptr ? view : *of, out, nullptr)
        .code;
  };
  CHECK(code(good) == StatusCode::ok);
  PlainOutputs out = good;
  out.tokens = nullptr;
  CHECK(code(out) == StatusCode::null_pointer);
  out = good;
  out.keys = nullptr;
  CHECK(code(out) == StatusCode::null_pointer);
  out = good;
  out.values = static_cast<std::byte*>(out.values) + 1;
  CHECK(code(out) == StatusCode::misaligned);
  CHECK(code(good, 0) == StatusCode::invalid_argument);
  CHECK(code(good, 2) == StatusCode::invalid_argument);
  PlainPages narrow = view;
  narrow.head_stride = dim - 1;
  CHECK(code(good, 1, &narrow) == StatusCode::invalid_argument);

  const std::vector<float> up(kv_heads * dim * 32, 0.1f);
  const ProjectionFactors factors{32, 32, up.data(), up.data()};
  Driver<PagedLayout<>, PaluPerHead> latents(config_of(1), {.factors = {&factors, 1}});
  CHECK(cuda::export_plain(latents.cache.layer(0), ids.as<SequenceId>(), 1, view, good, nullptr)
            .code == StatusCode::unsupported);
}
