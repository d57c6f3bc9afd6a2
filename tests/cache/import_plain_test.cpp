/// Import from an engine's pages: the same stored bytes as appending the same numbers densely.
#include "terse/cache/import_plain.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/engine_pages.hpp"
#include "support/rope_turns.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int heads = 2, channels = 64;

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 4,
          .num_kv_heads = heads,
          .head_dim = channels,
          .max_sequences = 3,
          .max_tokens = 300,
          .max_step_tokens = 128};
}

/// Two caches of which one imports what the other is given densely.
template <class P>
struct Imported {
  Driver<PagedLayout<>, P> paged{config()}, dense{config()};
  EnginePages& pages;
  Dialect dialect;

  /// Sequence i has table row i.
  explicit Imported(EnginePages& of_pages, Dialect of_dialect)
      : pages(of_pages), dialect(of_dialect) {
    for (std::size_t i = 0; i < pages.numbers.size(); ++i) {
      REQUIRE(paged.create() == dense.create());
    }
  }
  SequenceId id(int row) { return {row, generation(row)}; }
  std::uint32_t generation(int row) { return paged.cache.layer(0).sequences[row].generation; }

  void step(const std::vector<PageRange>& ranges) {
    std::vector<StepPart> parts;
    std::vector<float> keys, values;
    std::size_t rows = 0;
    for (const PageRange& range : ranges) {
      parts.push_back({id(range.table_row), range.tokens});
      const int first = static_cast<int>(range.first_place);
      pages.gather(Side::key, range.table_row, first, range.tokens, &keys);
      pages.gather(Side::value, range.table_row, first, range.tokens, &values);
      rows += static_cast<std::size_t>(range.tokens);
    }
    std::vector<std::int64_t> source_rows(rows + 2, -5);
    const PlainPages view = pages.view(dialect);
    REQUIRE(find_source_rows(view, ranges, source_rows).ok());
    CHECK(source_rows[rows] == -1);
    CHECK(source_rows[rows + 1] == -1);
    REQUIRE(paged.cache.begin_step(parts).ok());
    REQUIRE(dense.cache.begin_step(parts).ok());
    REQUIRE(paged.cache
                .append(0, *inputs_from_pages(view, paged.shape(), pages.key_tensor(),
                                              pages.value_tensor(), source_rows))
                .ok());
    REQUIRE(dense.cache
                .append(0, {HeadRows::dense(keys.data(), Scalar::f32, heads, channels),
                            HeadRows::dense(values.data(), Scalar::f32, heads, channels)})
                .ok());
    REQUIRE(paged.cache.commit_step().ok());
    REQUIRE(dense.cache.commit_step().ok());
    CHECK((paged.buffers == dense.buffers));
  }
};

template <class P>
void check_all(const PageForm& form) {
  INFO("order " << int(form.order) << ", scalar " << int(form.scalar) << ", page_tokens "
                << form.page_tokens << ", dialect " << int(form.dialect));
  EnginePages pages(form, heads, channels, {200, 90});
  Random random(5);
  pages.fill(random, 0, 200);
  pages.fill(random, 1, 90);
  Imported<P> both(pages, form.dialect);
  both.step({{0, 100, 0}});
  both.step({{1, 90, 0}, {0, 1, 100}});
  both.step({{0, 99, 101}});
}

/// Two caches of which one gathers rows, in any order, that the other is given densely.
template <class P>
void check_gathered(const CacheConfig& c, const PolicyConfig<PolicyOf<P>>& policy,
                    const RopeTable& rope = {}) {
  Driver<PagedLayout<>, P> gathering(c, policy), dense(c, policy);
  const SequenceId id = gathering.create();
  REQUIRE(dense.create() == id);
  Random random(9);
  for (const int tokens : {100, 1, 90}) {
    constexpr int spare = 7;
    const TokenRows all = token_rows(dense.shape(), 1, 0, dense.length(id), tokens + spare);
    std::vector<std::int64_t> source_rows(static_cast<std::size_t>(tokens + spare));
    std::iota(source_rows.begin(), source_rows.end(), 0);
    for (std::size_t i = source_rows.size(); i > 1; --i) {
      std::swap(source_rows[i - 1], source_rows[static_cast<std::size_t>(random.below(int(i)))]);
    }
    TokenRows own = all;
    const auto gather = [&](std::vector<float>& to, const std::vector<float>& from) {
      const auto width = static_cast<std::ptrdiff_t>(from.size() / source_rows.size());
      for (std::size_t i = 0; i < source_rows.size(); ++i) {
        std::copy_n(from.begin() + source_rows[i] * width, width,
                    to.begin() + static_cast<std::ptrdiff_t>(i) * width);
      }
    };
    gather(own.keys, all.keys);
    gather(own.values, all.values);
    AppendInputs a = append_inputs(dense.shape(), all), b = append_inputs(dense.shape(), own);
    a.source_rows = source_rows;
    a.num_source_rows = tokens + spare;
    a.rope = b.rope = rope;
    const StepPart part{id, tokens};
    REQUIRE(gathering.cache.begin_step({&part, 1}).ok());
    REQUIRE(dense.cache.begin_step({&part, 1}).ok());
    REQUIRE(gathering.cache.append(0, a).ok());
    REQUIRE(dense.cache.append(0, b).ok());
    REQUIRE(gathering.cache.commit_step().ok());
    REQUIRE(dense.cache.commit_step().ok());
    CHECK((gathering.buffers == dense.buffers));
  }
}

}  // namespace

TEST_CASE("importing is appending", "[cache][import]") {
  for (const PageOrder order :
       {PageOrder::nhd, PageOrder::hnd, PageOrder::combined_nhd, PageOrder::combined_hnd}) {
    for (const Dialect dialect : {Dialect::dense, Dialect::csr}) {
      check_all<Identity>({order, Scalar::f16, 16, dialect});
      check_all<Kivi2>({order, Scalar::bf16, 1, dialect});
      check_all<Int4Rotated>({order, Scalar::f32, 64, dialect});
    }
  }
  for (const PageForm& form : page_forms) check_all<Kivi2>(form);
}

TEST_CASE("gathered keys are turned to their own positions", "[cache][import]") {
  CacheConfig c = config();
  c.rope.rotary_dim = channels;
  const std::vector<float> turns = rope_turns(c.rope, 300);
  check_gathered<Kivi2>(c, {}, {turns.data(), 300});
}

TEST_CASE("gate logits stay rows of the step", "[cache][import]") {
  check_gathered<Compose<Kivi4, AttentionGate>>(config(), {.eviction = {.protected_tokens = 20}});
}

TEST_CASE("latents are gathered too", "[cache][import]") {
  constexpr int rank = 32, value_rank = 48;
  const std::vector<float> up(heads * channels * value_rank, 0.1f);
  const ProjectionFactors factors{rank, value_rank, up.data(), up.data()};
  check_gathered<PaluPerHead>(config(), {.factors = {&factors, 1}});
  check_gathered<PaluJoint>(config(), {.factors = {&factors, 1}});
}

TEST_CASE("the last row is a source row, the next is not", "[cache][import]") {
  for (const PageForm& form : page_forms) {
    INFO("order " << int(form.order) << ", page_tokens " << form.page_tokens);
    EnginePages pages(form, heads, channels, {100});
    // The last token of the last page.
    pages.numbers[0].back() = pages.num_pages - 1;
    const int last = static_cast<int>(pages.numbers[0].size()) * form.page_tokens - 1;
    pages.write_tables();
    Random random(10);
    pages.fill(random, 0, 100);
    for (int h = 0; h < heads; ++h) pages.put(Side::value, 0, last, h, 0, 5.0f);
    Driver<PagedLayout<>, Identity> d(config());
    const SequenceId id = d.create();
    const StepPart part{id, 1};
    std::int64_t row = -1;
    const PlainPages view = pages.view(form.dialect);
    const PageRange range{0, 1, last};
    REQUIRE(find_source_rows(view, {&range, 1}, {&row, 1}).ok());
    const AppendInputs in =
        *inputs_from_pages(view, d.shape(), pages.key_tensor(), pages.value_tensor(), {&row, 1});
    CHECK(row == in.num_source_rows - 1);
    CHECK(in.values.get(row, 1, 0) == 5.0f);
    REQUIRE(d.cache.begin_step({&part, 1}).ok());
    row = in.num_source_rows;
    CHECK(d.cache.append(0, in).code == StatusCode::invalid_argument);
    row = in.num_source_rows - 1;
    CHECK(d.cache.append(0, in).ok());
  }
}

TEST_CASE("a slot mapping is as good as a table", "[cache][import]") {
  Driver<PagedLayout<>, Kivi2> d(config());
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, heads, channels, {50});
  const PlainPages view = pages.view(Dialect::dense);
  std::vector<std::int64_t> slot_mapping, found(50);
  for (int i = 0; i < 50; ++i) {
    slot_mapping.push_back(std::int64_t{pages.numbers[0][static_cast<std::size_t>(i / 16)]} * 16 +
                           i % 16);
  }
  const PageRange range{0, 50, 0};
  REQUIRE(find_source_rows(view, {&range, 1}, found).ok());
  CHECK((found == slot_mapping));
  const auto slots_of = [&](const PlainPages& of) {
    return inputs_from_slots(of, d.shape(), pages.key_tensor(), pages.value_tensor(), slot_mapping);
  };
  const auto by_table =
      inputs_from_pages(view, d.shape(), pages.key_tensor(), pages.value_tensor(), found);
  const auto by_slots = slots_of(view);
  REQUIRE(by_table.ok());
  REQUIRE(by_slots.ok());
  CHECK(by_slots->num_source_rows == pages.num_pages * 16);
  CHECK(by_slots->num_source_rows == by_table->num_source_rows);
  CHECK(by_slots->keys.row_stride == by_table->keys.row_stride);
  CHECK(by_slots->source_rows.data() == slot_mapping.data());

  // Where token_stride alone has the divisor of the strides, rows are not slots.
  PlainPages gaps = view;
  gaps.page_stride += gaps.token_stride;
  CHECK(inputs_from_pages(gaps, d.shape(), pages.key_tensor(), pages.value_tensor(), found).ok());
  CHECK(slots_of(gaps).status().code == StatusCode::invalid_argument);
  for (const PageOrder order : {PageOrder::hnd, PageOrder::combined_nhd}) {
    EnginePages other(order, Scalar::f16, 16, heads, channels, {50});
    CHECK(slots_of(other.view(Dialect::csr)).status().code == StatusCode::invalid_argument);
  }
}

TEST_CASE("pages that hold no vectors of the cache's shape are refused", "[cache][import]") {
  Driver<PagedLayout<>, Kivi2> d(config());
  const std::vector<std::int64_t> rows(1);
  const auto code = [&](const EnginePages& pages) {
    const PlainPages view = pages.view(Dialect::dense);
    const auto slots =
        inputs_from_slots(view, d.shape(), pages.keys.data(), pages.keys.data(), rows);
    const auto found =
        inputs_from_pages(view, d.shape(), pages.keys.data(), pages.keys.data(), rows);
    CHECK(slots.status().code == found.status().code);
    return found.status().code;
  };
  CHECK(code({PageOrder::nhd, Scalar::f16, 16, heads, channels, {50}}) == StatusCode::ok);
  CHECK(code({PageOrder::nhd, Scalar::f16, 16, heads + 1, channels, {50}}) == StatusCode::ok);
  CHECK(code({PageOrder::nhd, Scalar::f16, 16, heads - 1, channels, {50}}) ==
        StatusCode::invalid_argument);
  CHECK(code({PageOrder::nhd, Scalar::f16, 16, heads, channels - 8, {50}}) ==
        StatusCode::invalid_argument);
}

TEST_CASE("pages that do not exist are found before anything is written", "[cache][import]") {
  EnginePages pages(PageOrder::hnd, Scalar::f16, 16, heads, channels, {50, 20});
  const auto find = [&](Dialect dialect, const std::vector<PageRange>& ranges, std::size_t rows) {
    std::vector<std::int64_t> found(rows, -5);
    const Status s = find_source_rows(pages.view(dialect), ranges, found);
    bool untouched = true;
    for (const std::int64_t row : found) untouched = untouched && row == -5;
    CHECK(untouched == !s.ok());
    return s;
  };
  for (const Dialect dialect : {Dialect::dense, Dialect::csr}) {
    INFO("dialect " << int(dialect));
    CHECK(find(dialect, {{0, 64, 0}}, 64).ok());
    CHECK(find(dialect, {{0, 65, 0}}, 65).code == StatusCode::invalid_argument);
    CHECK(find(dialect, {{0, 1, 0}, {0, 2, 63}}, 65).detail == 1);
    CHECK(find(dialect, {{0, 1, -1}}, 1).code == StatusCode::invalid_argument);
    CHECK(find(dialect, {{1, 33, 0}}, 33).code == StatusCode::invalid_argument);
    CHECK(find(dialect, {{2, 1, 0}}, 1).code == StatusCode::invalid_argument);
    CHECK(find(dialect, {{0, 10, 0}, {1, 10, 0}}, 19).code == StatusCode::buffer_too_small);
    for (const std::int32_t bad : {-1, pages.num_pages}) {
      const std::int32_t good = std::exchange(pages.numbers[0][2], bad);
      pages.write_tables();
      CHECK(find(dialect, {{0, 32, 0}}, 32).ok());
      CHECK(find(dialect, {{0, 33, 0}}, 33).code == StatusCode::invalid_argument);
      pages.numbers[0][2] = good;
      pages.write_tables();
    }
  }
}

TEST_CASE("append refuses source rows that are none", "[cache][import]") {
  EnginePages pages(PageOrder::nhd, Scalar::f32, 16, heads, channels, {50});
  // Places that no token has hold NaN, which nobody minds.
  std::fill(pages.keys.begin(), pages.keys.end(), std::byte{0xff});
  std::fill(pages.values.begin(), pages.values.end(), std::byte{0xff});
  Random random(7);
  pages.fill(random, 0, 50);
  Driver<PagedLayout<>, Kivi2> d(config());
  const SequenceId id = d.create();
  const PlainPages view = pages.view(Dialect::csr);
  std::vector<std::int64_t> source_rows(50);
  const PageRange range{0, 50, 0};
  REQUIRE(find_source_rows(view, {&range, 1}, source_rows).ok());
  const StepPart part{id, 50};
  REQUIRE(d.cache.begin_step({&part, 1}).ok());
  const OwnedBuffers before = d.buffers.copy();
  const auto append = [&](Span<const std::int64_t> rows) {
    return d.cache.append(
        0, *inputs_from_pages(view, d.shape(), pages.key_tensor(), pages.value_tensor(), rows));
  };
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{pages.num_pages} * 16}) {
    std::vector<std::int64_t> rows = source_rows;
    rows[49] = bad;
    const Status s = append(rows);
    CHECK(s.code == StatusCode::invalid_argument);
    CHECK(s.detail == 49);
  }
  CHECK(append({source_rows.data(), 49}).code == StatusCode::buffer_too_small);
  const auto refused = [&](auto&& change) {
    AppendInputs in =
        *inputs_from_pages(view, d.shape(), pages.key_tensor(), pages.value_tensor(), source_rows);
    change(in);
    return d.cache.append(0, in).code;
  };
  CHECK(refused([](AppendInputs& in) { in.num_source_rows = 0; }) == StatusCode::invalid_argument);
  CHECK(refused([](AppendInputs& in) { in.num_source_rows = -1; }) == StatusCode::invalid_argument);
  CHECK(refused([](AppendInputs& in) { in.source_rows = {}; }) == StatusCode::invalid_argument);
  CHECK(refused([](AppendInputs& in) {
          in.source_rows = {static_cast<const std::int64_t*>(nullptr), 50};
        }) == StatusCode::null_pointer);
  CHECK(refused([](AppendInputs& in) { in.values.row_stride = 0; }) ==
        StatusCode::invalid_argument);
  const auto spoil = [&](int place, float x) { pages.put(Side::value, 0, place, 1, 63, x); };
  spoil(49, std::numeric_limits<float>::infinity());
  CHECK(append(source_rows).code == StatusCode::not_finite);
  CHECK((d.buffers == before));
  spoil(49, 1.0f);
  CHECK(append(source_rows).ok());
}
