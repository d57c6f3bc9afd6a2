/// Steps of any size leave the same bytes as token by token, evicting at the same lengths.
#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// What a sequence stores, by entry: masks, positions, and the bytes of sealed blocks.
template <class Ref>
std::vector<std::byte> stored_bytes(const Ref& r, int sequence, std::int64_t sealed_end) {
  std::vector<std::byte> out;
  const auto add = [&](const void* data, std::size_t bytes) {
    const auto* p = static_cast<const std::byte*>(data);
    out.insert(out.end(), p, p + bytes);
  };
  for (int u = 0; u < r.shape.unit.units; ++u) {
    for (int e = 0; e < r.entry_count(sequence, r.row_of_unit(u)); ++e) {
      add(&r.live_mask(sequence, u, e), 8);
      for (int t = 0; t < block_tokens; ++t) {
        const std::int64_t p = r.position(sequence, u, e, t);
        add(&p, sizeof p);
      }
      const bool sealed = r.first_position(sequence, u, e) + block_tokens <= sealed_end;
      if (sealed) add(r.block(sequence, u, e), r.shape.unit_bytes);
    }
  }
  return out;
}

/// Compares a run in chunks with a run token by token at `lengths`; at each of them both evict.
template <class P>
void check_chunks(const CacheConfig& config, const PolicyConfig<PolicyOf<P>>& policy,
                  const std::vector<int>& lengths, const std::vector<int>& chunks) {
  constexpr bool observes = PolicyOf<P>::signal == Signal::column_sum;
  using D = Driver<PagedLayout<>, P>;
  for (const int chunk : chunks) {
    D single(config, policy), chunked(config, policy);
    const SequenceId a = single.create(), b = chunked.create();
    for (const int length : lengths) {
      REQUIRE(single.fill(a, length, 1).ok());
      REQUIRE(chunked.fill(b, length, chunk).ok());
      INFO("length " << length << ", chunk " << chunk);
      const auto ra = single.cache.layer(1), rb = chunked.cache.layer(1);
      const GridRecord grid = ra.grids[a.index];
      CHECK(grid.sealed_end == rb.grids[b.index].sealed_end);
      CHECK(stored_bytes(ra, a.index, grid.sealed_end) ==
            stored_bytes(rb, b.index, grid.sealed_end));
      CHECK(single.cache.memory_usage().pages_held == chunked.cache.memory_usage().pages_held);
      if (length > 0) CHECK(same_bits(single.attend(a), chunked.attend(b)));
      if (observes && length > 0) {
        for (D* d : {&single, &chunked}) {
          const StepPart part{d == &single ? a : b, 1};
          for (int layer = 0; layer < 2; ++layer) {
            const Attended seen = d->attend(part.sequence, 1, Path::oracle, {}, true, layer);
            (void)d->cache.observe(layer, {&part, 1}, seen.column_sums);
          }
        }
      }
      CHECK(*single.cache.evict(a) == *chunked.cache.evict(b));
    }
  }
}

CacheConfig config(int head_dim, int max_tokens) {
  return {.num_layers = 2,
          .num_query_heads = 2,
          .num_kv_heads = 2,
          .head_dim = head_dim,
          .max_sequences = 1,
          .max_tokens = max_tokens,
          .max_step_tokens = 200,
          .rope = {.rotary_dim = head_dim}};
}

const std::vector<int> boundaries = {0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 193, 256, 300};

}  // namespace

TEMPLATE_TEST_CASE("chunks store what single tokens store", "[cache][chunks]", Identity, Fp8, Int8,
                   Int4Rotated, Q8_0, Q4_0, Kivi2, Kivi3, Kivi4, TurboQuant3) {
  check_chunks<TestType>(config(64, 320), {}, boundaries, {2, 17, 64, 200});
}

TEST_CASE("chunks with tails and sinks store what single tokens store", "[cache][chunks]") {
  check_chunks<Kivi4>(config(64, 320), {.tail = TailSpec{40, 64, 4}}, boundaries, {5, 200});
  check_chunks<Int4Rotated>(config(64, 320), {.tail = TailSpec{64, 128, 16}}, boundaries,
                            {31, 200});
}

TEST_CASE("chunks that evict at the same lengths store the same", "[cache][chunks]") {
  using Stream = Compose<Kivi2, StreamingLLM>;
  check_chunks<Stream>(config(64, 320), {.eviction = {.sink_tokens = 4, .window_tokens = 70}},
                       boundaries, {7, 64, 200});
  using Heavy = Compose<Int4Rotated, H2O>;
  check_chunks<Heavy>(config(64, 320), {.eviction = {.heavy_tokens = 40, .recent_tokens = 20}},
                      boundaries, {7, 64, 200});
  using Gate = Compose<Kivi4, AttentionGate>;
  check_chunks<Gate>(config(64, 320), {.eviction = {.threshold = 0.6f, .protected_tokens = 8}},
                     boundaries, {7, 64, 200});
}

TEST_CASE("a thousand tokens in chunks", "[cache][chunks]") {
  check_chunks<Kivi2>(config(64, 1000), {}, {999, 1000}, {200});
  check_chunks<Int8>(config(64, 1000), {}, {999, 1000}, {200});
}

TEMPLATE_TEST_CASE("every row of a chunk attends as it would have alone", "[cache][chunks]",
                   Int4Rotated, Kivi2) {
  // The same tokens are read from the same copies; only the order of float sums may differ.
  Driver<PagedLayout<>, TestType> single(config(64, 320)), chunked(config(64, 320));
  const SequenceId a = single.create(), b = chunked.create();
  std::vector<float> alone;
  while (single.length(a) < 200) {
    REQUIRE(single.begin(a, 1).ok());
    const Attended row = single.attend(a);
    alone.insert(alone.end(), row.output.begin(), row.output.end());
    REQUIRE(single.cache.commit_step().ok());
  }
  REQUIRE(chunked.begin(b, 200).ok());
  CHECK(relative_l2(chunked.attend(b, 200).output, alone) < 1e-5);
}
