/// Import from an engine's pages on the device: the host's results, bit for bit.
#include "cuda/device_pages.cuh"
#include "support/rope_turns.hpp"

using namespace terse;
using namespace terse::tests;

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
