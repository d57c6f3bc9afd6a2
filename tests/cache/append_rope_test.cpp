/// Keys that append turns to their positions are those that were turned before it.
#include <algorithm>
#include <vector>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"
#include "support/projection_factors.hpp"
#include "support/rope_turns.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

/// `[row, kv_head, 64]`, turned to their positions.
void turn_rows(const RopeSpec& rope, std::int64_t position, std::vector<float>* keys) {
  for (std::size_t i = 0; i < keys->size() / 64; ++i) {
    rotate(rope, static_cast<double>(position + static_cast<std::int64_t>(i / 2)),
           keys->data() + i * 64);
  }
}

template <class P>
void check(const RopeSpec& rope) {
  Driver<PagedLayout<>, P> by_append(rope_config(rope)), before(rope_config(rope));
  const SequenceId a = by_append.create(), b = before.create();
  const std::vector<float> turns = rope_turns(rope, rope_positions);
  Random random(3);
  while (by_append.length(a) < rope_positions) {
    const std::int64_t position = by_append.length(a);
    const int tokens = std::min(1 + random.below(100), rope_positions - static_cast<int>(position));
    TokenRows rows = token_rows(by_append.shape(), 1, 0, position, tokens);
    AppendInputs in = append_inputs(by_append.shape(), rows);
    in.rope = {turns.data(), rope_positions};
    const StepPart part{a, tokens}, twin{b, tokens};
    REQUIRE(by_append.cache.begin_step({&part, 1}).ok());
    REQUIRE(by_append.cache.append(0, in).ok());
    REQUIRE(by_append.cache.commit_step().ok());
    turn_rows(rope, position, &rows.keys);
    REQUIRE(before.cache.begin_step({&twin, 1}).ok());
    REQUIRE(before.cache.append(0, append_inputs(before.shape(), rows)).ok());
    REQUIRE(before.cache.commit_step().ok());
  }
  std::vector<std::byte> saved(*by_append.cache.saved_bytes(a)), expected(saved.size());
  REQUIRE(by_append.cache.save(a, 1, saved).ok());
  REQUIRE(before.cache.save(b, 1, expected).ok());
  CHECK(saved == expected);
}

}  // namespace

TEST_CASE("append turns keys to their positions", "[append][rope]") {
  const RopeSpec half{.rotary_dim = 64};
  const RopeSpec interleaved{.pairing = RopePairing::interleaved, .rotary_dim = 64, .base = 5e5};
  const RopeSpec partly{.rotary_dim = 24};
  check<Identity>(half);
  check<Int8>(interleaved);
  check<Int4Rotated>(partly);
  check<Kivi2>(half);
  check<Compose<Kivi2, StreamingLLM>>(interleaved);
}

TEST_CASE("keys beyond 16 bits are limited before and after they are turned", "[append][rope]") {
  const RopeSpec rope{.rotary_dim = 64};
  Driver<PagedLayout<>, Identity> d(rope_config(rope)), other(rope_config(rope));
  const SequenceId s = d.create();
  REQUIRE(other.create() == s);
  const std::vector<float> turns = rope_turns(rope, 2);
  TokenRows rows = token_rows(d.shape(), 1, 0, 0, 2);
  std::fill(rows.keys.begin(), rows.keys.end(), 3e38f);
  TokenRows limited = rows;
  std::fill(limited.keys.begin(), limited.keys.end(), 65504.0f);
  turn_rows(rope, 0, &limited.keys);
  const StepPart part{s, 2};
  AppendInputs in = append_inputs(d.shape(), rows);
  in.rope = {turns.data(), 2};
  REQUIRE(d.cache.begin_step({&part, 1}).ok());
  REQUIRE(d.cache.append(0, in).ok());
  REQUIRE(other.cache.begin_step({&part, 1}).ok());
  REQUIRE(other.cache.append(0, append_inputs(other.shape(), limited)).ok());
  REQUIRE(d.cache.commit_step().ok());
  REQUIRE(other.cache.commit_step().ok());
  CHECK(same_bits(d.attend(s), other.attend(s)));
}

TEST_CASE("what append refuses about a table of turns", "[append][rope]") {
  const RopeSpec rope{.rotary_dim = 64};
  const std::vector<float> turns = rope_turns(rope, 20);
  const auto refusal = [&](auto& d, std::int64_t length, std::ptrdiff_t shift = 0) {
    const SequenceId s = d.create();
    const StepPart part{s, 10};
    const TokenRows rows = token_rows(d.shape(), 1, 0, 0, 10);
    AppendInputs in = append_inputs(d.shape(), rows);
    in.rope = {turns.data() + shift, length};
    REQUIRE(d.cache.begin_step({&part, 1}).ok());
    const Status status = d.cache.append(0, in);
    if (!status.ok()) {
      CHECK(d.cache.append(0, append_inputs(d.shape(), rows)).ok());  // nothing had happened
    }
    REQUIRE(d.cache.commit_step().ok());
    return status;
  };
  Driver<PagedLayout<>, Int8> d(rope_config(rope));
  CHECK(refusal(d, 10).ok());
  CHECK(refusal(d, 10, 1).code == StatusCode::misaligned);
  const Status status = refusal(d, 9);
  CHECK(status.code == StatusCode::invalid_argument);
  CHECK(status.detail == 10);
  Driver<PagedLayout<>, Int8> unturned(rope_config({}));
  CHECK(refusal(unturned, 20).code == StatusCode::invalid_argument);
  const Factors factors(2, 64, 32, 32);
  Driver<PagedLayout<>, PaluJoint> latents(rope_config(rope), {.factors = {&factors.view, 1}});
  CHECK(refusal(latents, 20).code == StatusCode::invalid_argument);
}
