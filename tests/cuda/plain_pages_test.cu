/// Import from and export to an engine's pages on the device: the host's results, bit for bit.
#include <algorithm>
#include <numeric>

#include "terse/cuda/export_plain.cuh"
#include "terse/cuda/import_plain.cuh"

#include "cuda/cache_pair.cuh"
#include "cuda/user_codec.cuh"
#include "support/engine_pages.hpp"
#include "support/rope_turns.hpp"

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

/// A device copy of pages and tables. `shift_bytes`: from an aligned address to the tensors.
struct DevicePages {
  EnginePages& host;
  std::size_t shift;
  DeviceBytes keys, values, block_table, indptr, indices;

  explicit DevicePages(EnginePages& pages, std::size_t shift_bytes = 0)
      : host(pages),
        shift(shift_bytes),
        keys(shift + pages.keys.size()),
        values(shift + pages.values.size()),
        block_table(DeviceBytes::copy_of(pages.block_table.data(), pages.block_table.size())),
        indptr(DeviceBytes::copy_of(pages.indptr.data(), pages.indptr.size())),
        indices(DeviceBytes::copy_of(pages.indices.data(), pages.indices.size())) {
    const auto send = [&](const DeviceBytes& to, const std::vector<std::byte>& from) {
      if (from.empty()) return;
      REQUIRE(cudaMemcpy(to.as<std::byte>() + shift, from.data(), from.size(), cudaMemcpyDefault) ==
              cudaSuccess);
    };
    send(keys, pages.keys);
    send(values, pages.values);
  }
  [[nodiscard]] PlainPages view(Dialect dialect) const {
    return host.view(host.table(dialect, block_table.as<std::int32_t>(), indptr.as<std::int32_t>(),
                                indices.as<std::int32_t>()));
  }
  [[nodiscard]] std::byte* key_tensor() const { return keys.as<std::byte>() + shift; }
  [[nodiscard]] std::byte* value_tensor() const {
    return host.is_combined() ? key_tensor() + host.value_shift() : values.as<std::byte>() + shift;
  }
  /// Whether the device's tensors are those of `other`.
  [[nodiscard]] bool equals(const EnginePages& other) const {
    const auto same = [&](const DeviceBytes& own, const std::vector<std::byte>& bytes) {
      const std::vector<std::byte> all = own.to_host<std::byte>();
      return std::equal(bytes.begin(), bytes.end(),
                        all.begin() + static_cast<std::ptrdiff_t>(shift));
    };
    return same(keys, other.keys) && same(values, other.values);
  }
};

/// Outputs of an export on the device, counts and positions -1 at first.
struct DeviceExport {
  static constexpr int max_places = 1024;
  std::size_t items;
  DeviceBytes ids, tokens, positions;

  DeviceExport(const std::vector<SequenceId>& sequences, int units)
      : items(sequences.size() * static_cast<std::size_t>(units)),
        ids(DeviceBytes::copy_of(sequences.data(), sequences.size())),
        tokens(items * sizeof(std::int32_t)),
        positions(items * max_places * sizeof(std::int32_t)) {}
  template <class Ref>
  Status launch(const Ref& view, const DevicePages& pages, Dialect dialect,
                cudaStream_t stream = nullptr) const {
    const auto count = static_cast<int>(ids.span().size() / sizeof(SequenceId));
    return cuda::export_plain(view, ids.as<SequenceId>(), count, pages.view(dialect),
                              {pages.key_tensor(), pages.value_tensor(), tokens.as<std::int32_t>(),
                               positions.as<std::int32_t>(), max_places},
                              stream);
  }
};

/// Exports of both caches into pages of 0xa5 agree: all bytes, counts and positions.
template <class P>
void check_export(const P& pair, const std::vector<SequenceId>& ids, EnginePages pages,
                  Dialect dialect, std::size_t shift = 0, int layer = 0) {
  const auto r = pair.host.cache.layer(layer);
  const DevicePages on_device(pages, shift);
  const DeviceExport call(ids, r.shape.unit.units);
  REQUIRE(call.launch(pair.device.layer(layer), on_device, dialect).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  std::vector<std::int32_t> tokens(call.items, -1);
  std::vector<std::int32_t> positions(call.items * DeviceExport::max_places, -1);
  REQUIRE(export_plain(r, ids, pages.view(dialect),
                       {pages.key_tensor(), pages.value_tensor(), tokens.data(), positions.data(),
                        DeviceExport::max_places})
              .ok());
  CHECK((call.tokens.to_host<std::int32_t>() == tokens));
  CHECK((call.positions.to_host<std::int32_t>() == positions));
  CHECK(on_device.equals(pages));
}

/// In all forms of pages.
template <class P>
void check_exports(const P& pair, const std::vector<SequenceId>& ids) {
  const std::vector<int> places(ids.size(), 700);
  for (const PageForm& form : page_forms) {
    INFO("order " << int(form.order) << ", page_tokens " << form.page_tokens);
    check_export(pair, ids, EnginePages(form, kv_heads, dim, places), form.dialect,
                 form.order == PageOrder::hnd ? std::size_t{4} : std::size_t{0});
  }
}

/// Both caches take one step from pages, layer 0 only.
template <class P>
void import_step(P& pair, EnginePages& pages, const DevicePages& on_device, Dialect dialect,
                 const std::vector<StepPart>& parts, const std::vector<PageRange>& ranges) {
  std::size_t rows = 0;
  for (const PageRange& range : ranges) rows += static_cast<std::size_t>(range.tokens);
  std::vector<std::int64_t> source_rows(rows);
  REQUIRE(find_source_rows(pages.view(dialect), ranges, source_rows).ok());
  const DeviceBytes device_ranges = DeviceBytes::copy_of(ranges.data(), ranges.size());
  const DeviceBytes device_rows(rows * sizeof(std::int64_t));
  const Span<std::int64_t> found(device_rows.as<std::int64_t>(), rows);
  REQUIRE(pair.host.cache.begin_step(parts).ok());
  REQUIRE(pair.device.begin_step(parts, nullptr).ok());
  REQUIRE(cuda::find_source_rows(on_device.view(dialect), device_ranges.as<PageRange>(),
                                 static_cast<int>(ranges.size()), found, nullptr)
              .ok());
  REQUIRE(pair.host.cache
              .append(0, *inputs_from_pages(pages.view(dialect), pair.shape(0), pages.key_tensor(),
                                            pages.value_tensor(), source_rows))
              .ok());
  REQUIRE(
      pair.device
          .append(0,
                  *inputs_from_pages(on_device.view(dialect), pair.shape(0), on_device.key_tensor(),
                                     on_device.value_tensor(), {found.data(), found.size()}),
                  nullptr)
          .ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE((device_rows.to_host<std::int64_t>() == source_rows));
  REQUIRE(pair.difference(4) == "");
  REQUIRE(pair.host.cache.commit_step().ok());
  REQUIRE(pair.device.commit_step(nullptr).ok());
}

/// Both caches take the same steps, all layers by the same source rows in any order. Gives the
/// sequence.
template <class P>
SequenceId check_gathered(P& pair, const RopeTable& on_host = {}, const RopeTable& on_device = {}) {
  const SequenceId id = pair.create();
  for (const int tokens : {100, 1, 90}) {
    constexpr int spare = 7;
    std::vector<std::int64_t> rows(static_cast<std::size_t>(tokens + spare));
    std::iota(rows.begin(), rows.end(), 0);
    for (std::size_t i = rows.size(); i > 1; --i) {
      std::swap(rows[i - 1], rows[static_cast<std::size_t>(pair.random.below(int(i)))]);
    }
    const DeviceBytes device_rows = DeviceBytes::copy_of(rows.data(), rows.size());
    const StepPart part{id, tokens};
    REQUIRE(pair.host.cache.begin_step({&part, 1}).ok());
    REQUIRE(pair.device.begin_step({&part, 1}, nullptr).ok());
    for (int layer = 0; layer < pair.host.config.num_layers; ++layer) {
      const TwinInputs in(pair.random, pair.shape(layer), tokens + spare, Scalar::f16);
      terse::AppendInputs a = in.on_host(), b = in.on_device();
      a.source_rows = rows;
      b.source_rows = {device_rows.as<std::int64_t>(), rows.size()};
      a.num_source_rows = b.num_source_rows = tokens + spare;
      a.rope = on_host;
      b.rope = on_device;
      REQUIRE(pair.host.cache.append(layer, a).ok());
      REQUIRE(pair.device.append(layer, b, nullptr).ok());
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }
    REQUIRE(pair.host.cache.commit_step().ok());
    REQUIRE(pair.device.commit_step(nullptr).ok());
    REQUIRE(pair.difference(1) == "");
  }
  return id;
}

}  // namespace

TEST_CASE("source rows are found as on the host", "[cuda][import]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  EnginePages pages(PageOrder::combined_nhd, Scalar::f16, 16, kv_heads, dim, {500, 40, 90});
  const std::vector<PageRange> ranges{{1, 40, 0}, {0, 300, 200}, {2, 0, 0}, {2, 1, 89}};
  const auto find = [&](const DevicePages& on_device, Dialect dialect,
                        const std::vector<PageRange>& of, std::size_t rows) {
    const DeviceBytes device_ranges = DeviceBytes::copy_of(of.data(), of.size());
    const std::vector<std::int64_t> unwritten(rows, -5);
    const DeviceBytes found = DeviceBytes::copy_of(unwritten.data(), rows);
    REQUIRE(cuda::find_source_rows(on_device.view(dialect), device_ranges.as<PageRange>(),
                                   static_cast<int>(of.size()), {found.as<std::int64_t>(), rows},
                                   nullptr)
                .ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    return found.to_host<std::int64_t>();
  };
  for (const Dialect dialect : {Dialect::dense, Dialect::csr}) {
    std::vector<std::int64_t> rows(350);
    REQUIRE(find_source_rows(pages.view(dialect), ranges, rows).ok());
    REQUIRE(rows[340] >= 0);
    REQUIRE(rows[341] == -1);
    const DevicePages good(pages);
    CHECK(find(good, dialect, ranges, 350) == rows);
    const std::vector<std::int64_t> fewer(rows.begin(), rows.begin() + 100);
    CHECK(find(good, dialect, ranges, 100) == fewer);
    for (const std::int32_t bad : {-1, pages.num_pages}) {
      EnginePages broken = pages;
      broken.numbers[0][20] = bad;
      broken.write_tables();
      const DevicePages of_broken(broken);
      std::vector<std::int64_t> own = rows;
      std::fill(own.begin() + 40 + 320 - 200, own.begin() + 40 + 336 - 200, -1);
      CHECK(find(of_broken, dialect, ranges, 350) == own);
    }
    const std::vector<std::int64_t> none(3, -1);
    CHECK(find(good, dialect, {{0, 1, 512}, {3, 1, 0}, {-1, 1, 0}}, 3) == none);
    CHECK(find(good, dialect, {{0, 1, -1}, {0, -5, 0}}, 3) == none);
    CHECK(find(good, dialect, {}, 3) == none);
  }
}

TEMPLATE_TEST_CASE("importing on the device is importing on the host", "[cuda][import]", Identity,
                   Kivi2, Int4Rotated) {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  for (const PageForm& form : page_forms) {
    // Not all pages begin at whole vectors.
    for (const std::size_t shift : {std::size_t{0}, std::size_t{4}}) {
      INFO("order " << int(form.order) << ", shift " << shift);
      Pair<TestType> pair(1);
      const SequenceId a = pair.create(), b = pair.create();
      EnginePages pages(form, kv_heads, dim, {260, 150});
      pages.fill(pair.random, 0, 260);
      pages.fill(pair.random, 1, 150);
      const DevicePages on_device(pages, shift);
      import_step(pair, pages, on_device, form.dialect, {{a, 128}}, {{0, 128, 0}});
      import_step(pair, pages, on_device, form.dialect, {{b, 100}, {a, 1}},
                  {{1, 100, 0}, {0, 1, 128}});
      import_step(pair, pages, on_device, form.dialect, {{a, 128}, {b, 50}},
                  {{0, 128, 129}, {1, 50, 100}});
      REQUIRE(pair.difference(4) == "");
    }
  }
}

TEST_CASE("gathered rows with all that append takes", "[cuda][import]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  SECTION("keys before RoPE") {
    CacheConfig config = config_of(1);
    config.rope.rotary_dim = dim;
    const std::vector<float> turns = rope_turns(config.rope, 300);
    const DeviceBytes copy = DeviceBytes::copy_of(turns.data(), turns.size());
    Pair<Int4Rotated> pair(config);
    check_gathered(pair, {turns.data(), 300}, {copy.as<float>(), 300});
  }
  SECTION("gate logits") {
    Pair<Compose<Kivi4, AttentionGate>> pair(1, {.eviction = {.protected_tokens = 20}});
    check_gathered(pair);
  }
  SECTION("latents") {
    const std::vector<float> up(kv_heads * dim * 48, 0.1f);
    const ProjectionFactors factors{32, 48, up.data(), up.data()};
    Pair<PaluPerHead> pair(1, {.factors = {&factors, 1}});
    check_gathered(pair);
  }
  SECTION("layers that share source rows") {
    Pair<Kivi2> pair(2);
    const SequenceId id = check_gathered(pair);
    check_export(pair, {id}, EnginePages(PageOrder::nhd, Scalar::f16, 48, kv_heads, dim, {200}),
                 Dialect::csr, 0, 1);
  }
}

TEST_CASE("a page that does not exist makes its sequence fail", "[cuda][import]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(1);
  const SequenceId bad = pair.create(), good = pair.create();
  pair.step({{bad, 100}, {good, 100}});
  const int which = GENERATE(0, 1, 2);
  CAPTURE(which);
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, kv_heads, dim, {64, 64});
  pages.fill(pair.random, 0, 64);
  pages.fill(pair.random, 1, 64);
  EnginePages broken = pages;
  if (which == 0) broken.numbers[0][2] = -1;
  if (which == 1) broken.numbers[0][2] = pages.num_pages;
  if (which == 2) broken.numbers[0].pop_back();
  broken.write_tables();
  const DevicePages on_device(pages), of_broken(broken);
  const std::vector<PageRange> ranges{{0, 60, 0}, {1, 60, 0}};
  const DeviceBytes device_ranges = DeviceBytes::copy_of(ranges.data(), ranges.size());
  const DeviceBytes rows(120 * sizeof(std::int64_t));
  const Span<std::int64_t> found(rows.as<std::int64_t>(), 120);
  REQUIRE(cuda::find_source_rows(of_broken.view(Dialect::csr), device_ranges.as<PageRange>(), 2,
                                 found, nullptr)
              .ok());
  const StepPart parts[] = {{bad, 60}, {good, 60}};
  REQUIRE(pair.device.begin_step(parts, nullptr).ok());
  REQUIRE(pair.device
              .append(0,
                      *inputs_from_pages(on_device.view(Dialect::csr), pair.shape(0),
                                         on_device.key_tensor(), on_device.value_tensor(),
                                         {found.data(), found.size()}),
                      nullptr)
              .ok());
  REQUIRE(pair.device.commit_step(nullptr).ok());
  // The host takes the good one's step only.
  std::vector<std::int64_t> good_rows(60);
  REQUIRE(find_source_rows(pages.view(Dialect::csr), {&ranges[1], 1}, good_rows).ok());
  REQUIRE(pair.host.cache.begin_step({&parts[1], 1}).ok());
  REQUIRE(pair.host.cache
              .append(0, *inputs_from_pages(pages.view(Dialect::csr), pair.shape(0),
                                            pages.key_tensor(), pages.value_tensor(), good_rows))
              .ok());
  REQUIRE(pair.host.cache.commit_step().ok());

  const DeviceExport call({bad, good}, kv_heads);
  EnginePages out(PageOrder::hnd, Scalar::f16, 16, kv_heads, dim, {200, 200});
  const DevicePages device_out(out);
  REQUIRE(call.launch(pair.device.layer(0), device_out, Dialect::dense).ok());
  const int code = -static_cast<int>(StatusCode::invalid_argument);
  CHECK(call.tokens.to_host<std::int32_t>() == std::vector<std::int32_t>{code, code, 160, 160});

  CHECK(pair.device.recover(good, nullptr).ok());
  CHECK(pair.device.recover(bad, nullptr).code == StatusCode::invalid_argument);
  CHECK(pair.device.recover(bad, nullptr).ok());
  CHECK(*pair.device.length(bad) == 100);
  check_exports(pair, {bad, good});
  // And on it goes.
  pair.step({{bad, 60}, {good, 1}});
  check_exports(pair, {bad, good});
}

TEST_CASE("what the host can see of source rows is refused there", "[cuda][import]") {
  if (!has_device()) TERSE_SKIP("no CUDA device");
  Pair<Kivi2> pair(1);
  const SequenceId id = pair.create();
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, kv_heads, dim, {64});
  const DevicePages on_device(pages);
  const DeviceBytes rows(9 * sizeof(std::int64_t)), ranges(sizeof(PageRange));
  const StepPart part{id, 10};
  REQUIRE(pair.device.begin_step({&part, 1}, nullptr).ok());
  terse::AppendInputs in =
      *inputs_from_pages(on_device.view(Dialect::csr), pair.shape(0), on_device.key_tensor(),
                         on_device.value_tensor(), {rows.as<std::int64_t>(), 9});
  CHECK(pair.device.append(0, in, nullptr).code == StatusCode::buffer_too_small);
  in.source_rows.count = 10;
  const auto refused = [&](auto&& change) {
    terse::AppendInputs changed = in;
    change(changed);
    return pair.device.append(0, changed, nullptr).code;
  };
  using Inputs = terse::AppendInputs;
  CHECK(refused([](Inputs& i) { i.keys.row_stride = 0; }) == StatusCode::invalid_argument);
  CHECK(refused([](Inputs& i) { i.num_source_rows = 0; }) == StatusCode::invalid_argument);
  CHECK(refused([](Inputs& i) { i.num_source_rows = -1; }) == StatusCode::invalid_argument);
  CHECK(refused([](Inputs& i) { i.source_rows = {}; }) == StatusCode::invalid_argument);
  CHECK(refused([](Inputs& i) {
          i.source_rows = {static_cast<const std::int64_t*>(nullptr), 10};
        }) == StatusCode::null_pointer);
  const Span<std::int64_t> found(rows.as<std::int64_t>(), 9);
  const auto find = [&](const PlainPages& view, const PageRange* of, int count) {
    return cuda::find_source_rows(view, of, count, found, nullptr).code;
  };
  PlainPages view = on_device.view(Dialect::dense);
  CHECK(find(view, nullptr, 1) == StatusCode::null_pointer);
  CHECK(find(view, ranges.as<PageRange>(), -1) == StatusCode::invalid_argument);
  CHECK(find(view, nullptr, 0) == StatusCode::ok);
  view.page_tokens = 0;
  CHECK(find(view, ranges.as<PageRange>(), 1) == StatusCode::invalid_argument);
}

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
