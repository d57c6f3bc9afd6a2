/// Export to an engine's pages: what attention of the newest query would read, and nothing else.
#include "terse/cache/export_plain.hpp"

#include <algorithm>
#include <cmath>

#include "terse/cache/import_plain.hpp"

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/engine_pages.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

constexpr int heads = 2, channels = 64;
using PerHead = PagedLayout<HeadPaging::per_head>;

CacheConfig config() {
  return {.num_layers = 1,
          .num_query_heads = 4,
          .num_kv_heads = heads,
          .head_dim = channels,
          .max_sequences = 3,
          .max_tokens = 400,
          .max_step_tokens = 128,
          .rope = {.rotary_dim = channels}};
}

/// A live token of a unit, found by a loop over all places, and where its numbers are read.
struct Found {
  std::int64_t position;
  int entry, token;
  bool in_tail, in_sinks;
};

template <class Ref>
std::vector<Found> live_tokens(const Ref& r, int sequence, int unit) {
  std::vector<Found> found;
  const std::int64_t visible = r.visible_tokens(sequence);
  for (int e = 0; e < r.entry_count(sequence, r.row_of_unit(unit)); ++e) {
    for (int t = 0; t < block_tokens; ++t) {
      const std::int64_t p = r.position(sequence, unit, e, t);
      if ((r.live_mask(sequence, unit, e) >> t & 1u) == 0 || p >= visible) continue;
      const bool in_tail = !r.shape.open && p >= r.grids[sequence].exact_begin &&
                           p >= r.sealed_before(sequence, visible - 1);
      found.push_back({p, e, t, in_tail, !in_tail && p < r.shape.tail.sink_tokens});
    }
  }
  return found;
}

/// A stream of a token, decoded or exact, out of the codec's basis.
template <class C, class Ref>
std::vector<float> stored_vector(const Ref& r, Side side, int sequence, int unit, int stream,
                                 const Found& f) {
  const ClassShape& shape = r.shape;
  const bool is_key = side == Side::key;
  const CodecContext context{side, is_key ? shape.key_width : shape.value_width};
  std::vector<float> x;
  for (int c = 0; c < context.width; ++c) {
    if (f.in_tail) {
      const std::byte* block = r.tail_block(sequence, unit, f.position);
      x.push_back(Ref::policy::tail_codec::decode(context, block + shape.tail_offset(side, stream),
                                                  f.token, c));
    } else if (f.in_sinks) {
      const std::byte* sinks = r.sink_block(sequence, unit) + shape.sink_offset(side, stream);
      x.push_back(Identity::load(context, sinks, 16, static_cast<int>(f.position), c));
    } else {
      const std::byte* block = r.block(sequence, unit, f.entry);
      block += is_key ? shape.key_offset(stream) : shape.value_offset(stream);
      x.push_back(C::decode(context, block, f.token, c));
    }
  }
  from_basis<C>(context, x.data());
  return x;
}

/// Exports to table row i the sequence ids[i] and compares all bytes, counts and positions with
/// those of plain loops. Gives how many tokens were exported exactly.
template <class Ref>
int check_export(const Ref& r, const std::vector<SequenceId>& ids, EnginePages& pages,
                 Dialect dialect) {
  using Policy = typename Ref::policy;
  const int units = r.shape.unit.units, max_places = 400;
  EnginePages expected = pages;
  std::vector<std::int32_t> tokens(ids.size() * static_cast<std::size_t>(units), -1);
  std::vector<std::int32_t> positions(tokens.size() * static_cast<std::size_t>(max_places), -1);
  std::vector<std::int32_t> own_tokens = tokens, own_positions = positions;
  const Status s = export_plain(
      r, ids, pages.view(dialect),
      {pages.key_tensor(), pages.value_tensor(), tokens.data(), positions.data(), max_places});
  REQUIRE(s.ok());
  int exact = 0;
  for (std::size_t row = 0; row < ids.size(); ++row) {
    for (int unit = 0; unit < units; ++unit) {
      const std::size_t at = row * static_cast<std::size_t>(units) + static_cast<std::size_t>(unit);
      const std::vector<Found> found = live_tokens(r, ids[row].index, unit);
      own_tokens[at] = static_cast<std::int32_t>(found.size());
      for (std::size_t place = 0; place < found.size(); ++place) {
        const Found& f = found[place];
        exact += f.in_tail || f.in_sinks ? 1 : 0;
        own_positions[at * static_cast<std::size_t>(max_places) + place] =
            static_cast<std::int32_t>(f.position);
        const auto put = [&](Side side, const std::vector<float>& x) {
          for (int c = 0; c < channels; ++c) {
            expected.put(side, static_cast<int>(row), static_cast<int>(place), unit, c,
                         x[static_cast<std::size_t>(c)]);
          }
        };
        put(Side::key,
            stored_vector<typename Policy::key_codec>(r, Side::key, ids[row].index, unit, 0, f));
        put(Side::value, stored_vector<typename Policy::value_codec>(r, Side::value, ids[row].index,
                                                                     unit, 0, f));
      }
    }
  }
  CHECK(tokens == own_tokens);
  CHECK((positions == own_positions));
  CHECK((pages.keys == expected.keys));
  CHECK((pages.values == expected.values));
  return exact;
}

/// The same in all forms of pages.
template <class D>
int check_everywhere(const D& d, const std::vector<SequenceId>& ids) {
  const std::vector<int> places(ids.size(), 330);
  int exact = 0;
  for (const PageForm& form : page_forms) {
    INFO("order " << int(form.order) << ", page_tokens " << form.page_tokens);
    EnginePages pages(form, heads, channels, places);
    exact = check_export(d.cache.layer(0), ids, pages, form.dialect);
  }
  return exact;
}

template <Layout L, class P>
Driver<L, P> filled(int length, const PolicyConfig<PolicyOf<P>>& policy = {}) {
  Driver<L, P> d(config(), policy);
  REQUIRE(d.fill(d.create(), length, 100).ok());
  REQUIRE(d.fill(d.create(), 65, 65, 2).ok());
  return d;
}

template <class D>
std::vector<SequenceId> handles(const D& d) {
  const auto r = d.cache.layer(0);
  return {{1, r.sequences[1].generation}, {0, r.sequences[0].generation}};
}

}  // namespace

TEST_CASE("fp16 goes in and comes out", "[cache][export]") {
  for (const PageOrder order : {PageOrder::nhd, PageOrder::combined_hnd}) {
    EnginePages pages(order, Scalar::f16, 16, heads, channels, {200});
    Random random(2);
    pages.fill(random, 0, 200);
    Driver<PagedLayout<>, Identity> d(config());
    const SequenceId id = d.create();
    for (int first = 0; first < 200; first += 100) {
      const PageRange range{0, 100, first};
      std::vector<std::int64_t> source_rows(100);
      REQUIRE(find_source_rows(pages.view(Dialect::dense), {&range, 1}, source_rows).ok());
      const StepPart part{id, 100};
      REQUIRE(d.cache.begin_step({&part, 1}).ok());
      REQUIRE(
          d.cache
              .append(0, *inputs_from_pages(pages.view(Dialect::dense), d.shape(),
                                            pages.key_tensor(), pages.value_tensor(), source_rows))
              .ok());
      REQUIRE(d.cache.commit_step().ok());
    }
    EnginePages out(order, Scalar::f16, 16, heads, channels, {200});
    REQUIRE(export_plain(d.cache.layer(0), {&id, 1}, out.view(Dialect::csr),
                         {out.key_tensor(), out.value_tensor()})
                .ok());
    for (const Side side : {Side::key, Side::value}) {
      std::vector<float> a, b;
      pages.gather(side, 0, 0, 200, &a);
      out.gather(side, 0, 0, 200, &b);
      CHECK(same_bits(a, b));
    }
  }
}

TEST_CASE("layers that share source rows", "[cache][import][export]") {
  CacheConfig two = config();
  two.num_layers = 2;
  Driver<PagedLayout<>, Identity> d(two);
  const SequenceId id = d.create();
  std::vector<EnginePages> layers(2, {PageOrder::hnd, Scalar::f16, 16, heads, channels, {100}});
  Random random(8);
  for (EnginePages& pages : layers) pages.fill(random, 0, 100);
  const PlainPages view = layers[0].view(Dialect::csr);
  const PageRange range{0, 100, 0};
  const StepPart part{id, 100};
  std::vector<std::int64_t> source_rows(100);
  REQUIRE(find_source_rows(view, {&range, 1}, source_rows).ok());
  REQUIRE(d.cache.begin_step({&part, 1}).ok());
  for (int layer : {0, 1}) {
    EnginePages& pages = layers[static_cast<std::size_t>(layer)];
    REQUIRE(d.cache
                .append(layer, *inputs_from_pages(view, d.shape(), pages.key_tensor(),
                                                  pages.value_tensor(), source_rows))
                .ok());
  }
  REQUIRE(d.cache.commit_step().ok());
  EnginePages out(PageOrder::nhd, Scalar::f16, 48, heads, channels, {100});
  REQUIRE(export_plain(d.cache.layer(1), {&id, 1}, out.view(Dialect::dense),
                       {out.key_tensor(), out.value_tensor()})
              .ok());
  for (const Side side : {Side::key, Side::value}) {
    std::vector<float> a, b;
    layers[1].gather(side, 0, 0, 100, &a);
    out.gather(side, 0, 0, 100, &b);
    CHECK(same_bits(a, b));
  }
}

TEST_CASE("a prompt moves into the cache and back", "[cache][import][export]") {
  constexpr int prompt = 100;
  EnginePages engine(PageOrder::nhd, Scalar::f16, 16, heads, channels, {prompt});
  Random random(4);
  engine.fill(random, 0, prompt);
  const std::vector<std::byte> keys_before = engine.keys, values_before = engine.values;
  Driver<PagedLayout<>, Identity> driver(config());
  auto& cache = driver.cache;
  const SequenceId sequence = driver.create();
  const auto must = [](const Status& status) { REQUIRE(status.ok()); };
  const int num_pages = engine.num_pages, kv_heads = heads, head_dim = channels;
  const std::int32_t* block_table = engine.block_table.data();
  std::byte *engine_keys = engine.key_tensor(), *engine_values = engine.value_tensor();

  // [import]
  const PlainPages pages = PlainPages::nhd(
      Scalar::f16,
      {.num_pages = num_pages, .page_tokens = 16, .heads = kv_heads, .channels = head_dim},
      PageTable::dense(block_table, 1, 7));
  const PageRange ranges[] = {{.table_row = 0, .tokens = prompt, .first_place = 0}};
  std::vector<std::int64_t> source_rows(prompt);
  must(find_source_rows(pages, ranges, source_rows));  // once for all layers
  const auto inputs =
      inputs_from_pages(pages, cache.layer(0).shape, engine_keys, engine_values, source_rows);
  must(inputs.status());
  const StepPart step[] = {{sequence, prompt}};
  must(cache.begin_step(step));
  must(cache.append(0, *inputs));
  must(cache.commit_step());
  // [import]

  std::fill(engine.keys.begin(), engine.keys.end(), std::byte{0xa5});
  std::fill(engine.values.begin(), engine.values.end(), std::byte{0xa5});
  // [export]
  const SequenceId sequences[] = {sequence};
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(kv_heads));
  must(export_plain(cache.layer(0), sequences, pages, {engine_keys, engine_values, tokens.data()}));
  // [export]
  CHECK(tokens == std::vector<std::int32_t>{prompt, prompt});
  CHECK((engine.keys == keys_before));
  CHECK((engine.values == values_before));
}

TEST_CASE("what codecs decode to", "[cache][export]") {
  for (const int length : {1, 64, 300}) {
    INFO("length " << length);
    const auto open = filled<PagedLayout<>, Int8>(length);
    CHECK(check_everywhere(open, handles(open)) == 0);
    const auto rotated = filled<ContiguousLayout, Int4Rotated>(length);
    CHECK(check_everywhere(rotated, handles(rotated)) == 0);
    const auto halves = filled<PerHead, Fp8>(length);
    CHECK(check_everywhere(halves, handles(halves)) == 0);
  }
}

TEST_CASE("tails and sinks are exported exactly", "[cache][export]") {
  auto d = filled<PagedLayout<>, Kivi2>(
      300, {.tail = TailSpec{.min_tokens = 1, .granule_tokens = 64, .sink_tokens = 5}});
  // 299 is read with 256 and later exactly, and 0 to 4; of the other 64: 0 to 4 and 64.
  CHECK(check_everywhere(d, handles(d)) == heads * (44 + 5 + 1 + 5));
  EnginePages pages(PageOrder::nhd, Scalar::f32, 16, heads, channels, {300});
  const SequenceId id = handles(d)[1];
  REQUIRE(export_plain(d.cache.layer(0), {&id, 1}, pages.view(Dialect::dense),
                       {pages.key_tensor(), pages.value_tensor()})
              .ok());
  const TokenRows rows = token_rows(d.shape(), 1, 0, 0, 300);
  const auto is_exact = [&](int place) {
    bool equal = true;
    for (int h = 0; h < heads; ++h) {
      for (int c = 0; c < channels; ++c) {
        const auto at = static_cast<std::size_t>((place * heads + h) * channels + c);
        equal = equal && pages.get(Side::key, 0, place, h, c) == to_float(to_f16(rows.keys[at])) &&
                pages.get(Side::value, 0, place, h, c) == to_float(to_f16(rows.values[at]));
      }
    }
    return equal;
  };
  for (const int place : {0, 4, 256, 299}) CHECK(is_exact(place));
  for (const int place : {5, 63, 64, 255}) CHECK_FALSE(is_exact(place));
}

TEST_CASE("a tail kept in a basis is turned back", "[cache][export]") {
  const auto d = filled<PagedLayout<>, Int4Rotated>(
      150, {.tail = TailSpec{.min_tokens = 64, .sink_tokens = 16}});
  CHECK(check_everywhere(d, handles(d)) > 0);
}

TEST_CASE("survivors of eviction lie without gaps, head by head", "[cache][export]") {
  Driver<PerHead, Compose<Int8, H2O>> d(config(),
                                        {.eviction = {.heavy_tokens = 60, .recent_tokens = 40}});
  const SequenceId s = d.create(), other = d.create();
  REQUIRE(d.fill(other, 30, 30, 2).ok());
  while (d.length(s) < 300) {
    REQUIRE(d.step(s, 50).ok());
    const StepPart part{s, 50};
    const Attended seen = d.attend(s, 50, Path::vectorised, {}, true);
    REQUIRE(d.cache.observe(0, {&part, 1}, seen.column_sums).ok());
    REQUIRE(d.cache.evict(s).ok());
  }
  REQUIRE(live_tokens(d.cache.layer(0), s.index, 0).size() == 100);
  (void)check_everywhere(d, {other, s});
  REQUIRE(d.cache.compact(s).ok());
  (void)check_everywhere(d, {s, other});
}

TEST_CASE("units with different numbers of tokens", "[cache][export]") {
  Driver<PagedLayout<>, Compose<Kivi4, AttentionGate>> d(config(),
                                                         {.eviction = {.protected_tokens = 20}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 64).ok());
  REQUIRE(d.cache.evict(s).ok());
  const auto r = d.cache.layer(0);
  REQUIRE(live_tokens(r, s.index, 0).size() != live_tokens(r, s.index, 1).size());
  CHECK(check_everywhere(d, {s}) > 0);
}

TEST_CASE("sinks that compaction has moved", "[cache][export]") {
  Driver<PagedLayout<>, Compose<Int8, AttentionGate>> d(
      config(), {.eviction = {.protected_tokens = 20}, .tail = TailSpec{.sink_tokens = 16}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 100).ok());
  REQUIRE(d.cache.evict(s).ok());
  REQUIRE(d.cache.compact(s)->tokens_moved > 0);
  const std::vector<Found> found = live_tokens(d.cache.layer(0), s.index, 0);
  REQUIRE(std::any_of(found.begin(), found.end(),
                      [](const Found& f) { return f.in_sinks && f.token != f.position; }));
  CHECK(check_everywhere(d, {s}) > 0);
}

TEST_CASE("windows, truncation and steps in progress", "[cache][export]") {
  Driver<PagedLayout<>, Compose<Kivi2, StreamingLLM>> d(
      config(), {.eviction = {.sink_tokens = 4, .window_tokens = 100}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 300, 100).ok());
  REQUIRE(d.cache.evict(s).ok());
  REQUIRE(live_tokens(d.cache.layer(0), s.index, 0).size() == 104);
  (void)check_everywhere(d, {s});
  REQUIRE(d.cache.truncate(s, 250).ok());
  (void)check_everywhere(d, {s});
  REQUIRE(d.begin(s, 9).ok());
  REQUIRE(live_tokens(d.cache.layer(0), s.index, 0).size() == 63);
  (void)check_everywhere(d, {s});
  const int accepted[] = {4};
  REQUIRE(d.cache.commit_step(accepted).ok());
  REQUIRE(live_tokens(d.cache.layer(0), s.index, 0).size() == 58);
  (void)check_everywhere(d, {s});
  REQUIRE(d.cache.truncate(s, 0).ok());
  (void)check_everywhere(d, {s});
}

TEST_CASE("latents are rebuilt and turned to their positions", "[cache][export]") {
  constexpr int kv = 4, rank = 48, value_rank = 32;
  Random random(3);
  const std::vector<float> key_up = random.normals(kv * channels * rank, 0.15f);
  const std::vector<float> value_up = random.normals(kv * channels * value_rank, 0.15f);
  const ProjectionFactors factors{rank, value_rank, key_up.data(), value_up.data()};
  using P = Compose<Palu<PaluSpec{.key_heads_per_group = 2, .value_heads_per_group = 4}>, Int8>;
  CacheConfig c = config();
  c.num_query_heads = c.num_kv_heads = kv;
  c.rope.pairing = RopePairing::interleaved;
  c.rope.rotary_dim = 32;
  Driver<PagedLayout<>, P> d(c, {.tail = TailSpec{.min_tokens = 20}, .factors = {&factors, 1}});
  const SequenceId s = d.create();
  REQUIRE(d.fill(s, 150, 100).ok());
  const auto r = d.cache.layer(0);
  EnginePages pages(PageOrder::nhd, Scalar::f32, 16, kv, channels, {150});
  std::int32_t tokens = 0;
  REQUIRE(export_plain(r, {&s, 1}, pages.view(Dialect::dense),
                       {pages.key_tensor(), pages.value_tensor(), &tokens})
              .ok());
  CHECK(tokens == 150);
  std::vector<float> own, exported;
  for (const Found& f : live_tokens(r, s.index, 0)) {
    const auto place = static_cast<int>(f.position);
    for (int h = 0; h < kv; ++h) {
      const auto x = stored_vector<Int8>(r, Side::key, s.index, 0, h / 2, f);
      const auto y = stored_vector<Int8>(r, Side::value, s.index, 0, 0, f);
      std::vector<double> key(channels), value(channels);
      for (std::size_t i = 0; i < channels; ++i) {
        const std::size_t channel = static_cast<std::size_t>(h) * channels + i;
        for (std::size_t j = 0; j < rank; ++j) key[i] += double{key_up[channel * rank + j]} * x[j];
        for (std::size_t j = 0; j < value_rank; ++j) {
          value[i] += double{value_up[channel * value_rank + j]} * y[j];
        }
      }
      for (std::size_t i = 0; i < 16; ++i) {
        const double angle = place * std::pow(10000.0, -2.0 * static_cast<double>(i) / 32);
        const double a = key[2 * i], b = key[2 * i + 1];
        key[2 * i] = a * std::cos(angle) - b * std::sin(angle);
        key[2 * i + 1] = a * std::sin(angle) + b * std::cos(angle);
      }
      for (int i = 0; i < channels; ++i) {
        own.push_back(static_cast<float>(key[static_cast<std::size_t>(i)]));
        own.push_back(static_cast<float>(value[static_cast<std::size_t>(i)]));
        exported.push_back(pages.get(Side::key, 0, place, h, i));
        exported.push_back(pages.get(Side::value, 0, place, h, i));
      }
    }
  }
  CHECK(relative_l2(exported, own) < 1e-6);
}

TEST_CASE("exports that cannot be leave everything as it was", "[cache][export]") {
  auto d = filled<PagedLayout<>, Int8>(300);
  std::vector<SequenceId> ids = handles(d);
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, heads, channels, {80, 300});
  std::vector<std::int32_t> tokens(4, -3), positions(4 * 300, -3);
  PlainOutputs out{pages.key_tensor(), pages.value_tensor(), tokens.data(), positions.data(), 300};
  PlainPages view = pages.view(Dialect::csr);
  Status s;
  const auto refused = [&](StatusCode code) {
    const EnginePages before = pages;
    s = export_plain(d.cache.layer(0), ids, view, out);
    const bool untouched = pages.keys == before.keys && pages.values == before.values &&
                           std::count(tokens.begin(), tokens.end(), -3) == 4 &&
                           std::count(positions.begin(), positions.end(), -3) == 4 * 300;
    return s.code == code && untouched;
  };
  SECTION("a table row that is too short") {
    pages.numbers[1].pop_back();
    pages.write_tables();
    view = pages.view(Dialect::csr);
    CHECK(refused(StatusCode::buffer_too_small));
    CHECK(s.detail == 300);
  }
  SECTION("no room for positions") {
    out.max_places = 299;
    CHECK(refused(StatusCode::buffer_too_small));
    CHECK(s.detail == 300);
  }
  SECTION("a page that does not exist") {
    for (const std::int32_t bad : {-1, pages.num_pages}) {
      pages.numbers[1].back() = bad;
      pages.write_tables();
      for (const Dialect dialect : {Dialect::dense, Dialect::csr}) {
        view = pages.view(dialect);
        CHECK(refused(StatusCode::invalid_argument));
      }
    }
  }
  SECTION("pages of fewer heads") {
    const EnginePages narrow(PageOrder::nhd, Scalar::f16, 16, heads - 1, channels, {80, 300});
    view = narrow.view(Dialect::csr);
    CHECK(refused(StatusCode::invalid_argument));
  }
  SECTION("more sequences than table rows") {
    view.table.rows = 1;
    CHECK(refused(StatusCode::invalid_argument));
  }
  SECTION("no sequence") {
    ids.clear();
    CHECK(refused(StatusCode::invalid_argument));
  }
  SECTION("a handle of a sequence that is gone") {
    REQUIRE(d.cache.release(ids[1]).ok());
    CHECK(refused(StatusCode::stale_sequence));
  }
  SECTION("a handle whose place another sequence has") {
    REQUIRE(d.cache.release(ids[1]).ok());
    REQUIRE(d.create().index == ids[1].index);
    CHECK(refused(StatusCode::stale_sequence));
  }
  SECTION("a step that is not appended") {
    const StepPart part{ids[1], 1};
    REQUIRE(d.cache.begin_step({&part, 1}).ok());
    CHECK(refused(StatusCode::wrong_phase));
  }
  SECTION("nowhere to write") {
    out.values = nullptr;
    CHECK(refused(StatusCode::null_pointer));
  }
  SECTION("a bad page behind the last token") {
    pages.numbers[1].push_back(-1);
    pages.write_tables();
    view = pages.view(Dialect::csr);
    CHECK(export_plain(d.cache.layer(0), ids, view, out).ok());
  }
}
