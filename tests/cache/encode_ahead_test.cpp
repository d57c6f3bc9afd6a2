/// Codes of complete blocks that wait in the tail: sealing copies them, new tokens drop them.
#include <cstring>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

using Rough = PolicyOf<Kivi2>;
using EightBits = Compose<Kivi2, TailCodec<Int8>>;

/// One layer, a tail of at least 100 tokens in steps of 64: block 0 is complete at 64 and due at
/// 164.
template <class P>
struct Ahead : Driver<PagedLayout<>, P> {
  static constexpr int due = 164;
  SequenceId s = this->create();

  explicit Ahead(bool encodes_ahead = true)
      : Driver<PagedLayout<>, P>({.num_layers = 1,
                                  .num_query_heads = 2,
                                  .num_kv_heads = 1,
                                  .head_dim = 64,
                                  .max_sequences = 2,
                                  .max_tokens = 512,
                                  .max_step_tokens = 70},
                                 {.tail = TailSpec{.min_tokens = 100, .granule_tokens = 64},
                                  .encodes_ahead = encodes_ahead}) {}

  [[nodiscard]] auto ref() const { return this->cache.layer(0); }
  [[nodiscard]] std::byte* waiting(SequenceId id, Side side) const {
    return ref().tail_block(id.index, 0, 0) + this->shape().ahead_offset(side, 0);
  }
  /// Grows by one token with encode_ahead.
  void step_ahead() {
    REQUIRE(this->begin(s, 1).ok());
    REQUIRE(this->cache.encode_ahead(0).ok());
    REQUIRE(this->cache.commit_step().ok());
  }
  [[nodiscard]] std::vector<std::byte> sealed(SequenceId id) const {
    const std::byte* block = ref().block(id.index, 0, 0);
    return {block, block + this->shape().unit_bytes};
  }
};

/// The bytes of a cache that never encodes ahead.
template <class P>
std::vector<std::byte> plainly_sealed() {
  Ahead<P> plain(false);
  REQUIRE(plain.fill(plain.s, Ahead<P>::due, 70).ok());
  return plain.sealed(plain.s);
}

}  // namespace

TEMPLATE_TEST_CASE("a step that seals copies the codes that wait", "[cache][encode_ahead]", Rough,
                   EightBits) {
  using A = Ahead<TestType>;
  A a;
  REQUIRE(a.fill(a.s, A::due - 2, 70).ok());
  a.step_ahead();
  const SequenceId twin = *a.cache.fork(a.s);
  for (const Side side : {Side::key, Side::value}) *a.waiting(a.s, side) ^= std::byte{1};
  REQUIRE(a.step(a.s, 1).ok());
  REQUIRE(a.step(twin, 1).ok());
  std::vector<std::byte> expected = plainly_sealed<TestType>();
  CHECK((a.sealed(twin) == expected));
  expected[a.shape().key_offset(0)] ^= std::byte{1};
  expected[a.shape().value_offset(0)] ^= std::byte{1};
  CHECK((a.sealed(a.s) == expected));
}

TEMPLATE_TEST_CASE("new tokens of a block drop its codes", "[cache][encode_ahead]", Rough,
                   EightBits) {
  using A = Ahead<TestType>;
  A a;
  REQUIRE(a.fill(a.s, 70, 70).ok());
  a.step_ahead();
  REQUIRE(a.cache.truncate(a.s, 60).ok());
  for (const Side side : {Side::key, Side::value}) *a.waiting(a.s, side) ^= std::byte{1};
  REQUIRE(a.fill(a.s, A::due, 70).ok());
  CHECK((a.sealed(a.s) == plainly_sealed<TestType>()));
}

TEST_CASE("waiting codes are part of a saved sequence, and of what it may be loaded to",
          "[cache][encode_ahead]") {
  Ahead<Rough> a, b, without(false);
  REQUIRE(a.fill(a.s, 100, 70).ok());
  a.step_ahead();
  *a.waiting(a.s, Side::key) ^= std::byte{1};
  std::vector<std::byte> bytes(*a.cache.saved_bytes(a.s));
  REQUIRE(a.cache.save(a.s, 1, bytes).ok());
  CHECK(without.cache.load(bytes, 1).status().code == StatusCode::mismatch);
  const auto loaded = b.cache.load(bytes, 1);
  REQUIRE(loaded.ok());
  CHECK(*b.waiting(*loaded, Side::key) == *a.waiting(a.s, Side::key));
}
