/// Handles, phases, refused input: what a call may be told and when.
#include <cmath>
#include <limits>

#include "support/cache_driver.hpp"
#include "support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

CacheConfig small() {
  return {.num_layers = 2,
          .num_query_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 64,
          .max_sequences = 2,
          .max_tokens = 256,
          .max_step_tokens = 70};
}

/// A refused call has the given code and changes no byte.
template <class D, class Call>
void refused(D& d, StatusCode code, Call&& call) {
  const OwnedBuffers before = d.buffers.copy();
  const Status status = call();
  INFO(status.text);
  CHECK(status.code == code);
  CHECK(before == d.buffers);
}

}  // namespace

TEST_CASE("stale handles are recognised", "[cache]") {
  Driver<PagedLayout<>, Int8> d(small());
  const SequenceId old = d.create();
  REQUIRE(d.step(old, 3).ok());
  REQUIRE(d.cache.release(old).ok());
  const SequenceId fresh = d.create();
  REQUIRE(fresh.index == old.index);
  REQUIRE(d.step(fresh, 2).ok());
  const StepPart part{old, 1};
  const auto stale = StatusCode::stale_sequence;
  refused(d, stale, [&] { return d.cache.release(old); });
  refused(d, stale, [&] { return d.cache.length(old).status(); });
  refused(d, stale, [&] { return d.cache.fork(old).status(); });
  refused(d, stale, [&] { return d.cache.truncate(old, 0); });
  refused(d, stale, [&] { return d.cache.begin_step({&part, 1}); });
  refused(d, stale, [&] { return d.cache.evict(old).status(); });
  refused(d, stale, [&] { return d.cache.compact(old).status(); });
  refused(d, stale, [&] { return d.attend(old).status; });
  refused(d, stale, [&] { return d.cache.truncate(SequenceId{}, 0); });
  refused(d, stale, [&] { return d.cache.truncate(SequenceId{7, 1}, 0); });
  CHECK(d.length(fresh) == 2);
}

TEST_CASE("calls out of phase are refused", "[cache]") {
  Driver<PagedLayout<>, Kivi2> d(small());
  const SequenceId s = d.create();
  REQUIRE(d.step(s, 5).ok());
  const auto wrong = StatusCode::wrong_phase;
  const TokenRows rows = token_rows(d.shape(), 1, 0, 5, 1);
  const AppendInputs in = append_inputs(d.shape(), rows);
  const StepPart part{s, 1};
  refused(d, wrong, [&] { return d.cache.append(0, in); });
  refused(d, wrong, [&] { return d.cache.commit_step(); });
  refused(d, wrong, [&] { return d.cache.abandon_step(); });
  REQUIRE(d.cache.begin_step({&part, 1}).ok());
  refused(d, wrong, [&] { return d.cache.begin_step({&part, 1}); });
  refused(d, wrong, [&] { return d.cache.create_sequence().status(); });
  refused(d, wrong, [&] { return d.cache.release(s); });
  refused(d, wrong, [&] { return d.cache.fork(s).status(); });
  refused(d, wrong, [&] { return d.cache.truncate(s, 1); });
  refused(d, wrong, [&] { return d.cache.evict(s).status(); });
  refused(d, wrong, [&] { return d.cache.compact(s).status(); });
  REQUIRE(d.cache.append(0, in).ok());
  refused(d, StatusCode::already_appended, [&] { return d.cache.append(0, in); });
  refused(d, wrong, [&] { return d.cache.commit_step(); });  // layer 1 is missing
  refused(d, StatusCode::invalid_argument, [&] { return d.cache.append(2, in); });
  REQUIRE(d.cache.append(1, in).ok());
  REQUIRE(d.cache.commit_step().ok());
  CHECK(d.length(s) == 6);
}

TEST_CASE("codes wait in the tail only inside a step, after its append, where there is room",
          "[cache]") {
  PolicyConfig<PolicyOf<Kivi2>> policy;
  policy.encodes_ahead = true;
  Driver<PagedLayout<>, Kivi2> d(small(), policy), without_room(small());
  const auto wrong = StatusCode::wrong_phase;
  const SequenceId s = d.create();
  refused(d, wrong, [&] { return d.cache.encode_ahead(0); });
  REQUIRE(d.begin(s, 5).ok());
  CHECK(d.cache.encode_ahead(0).ok());
  refused(d, StatusCode::invalid_argument, [&] { return d.cache.encode_ahead(2); });
  REQUIRE(d.cache.commit_step().ok());
  const StepPart part{s, 1};
  REQUIRE(d.cache.begin_step({&part, 1}).ok());
  refused(d, wrong, [&] { return d.cache.encode_ahead(1); });  // before its append
  REQUIRE(d.cache.abandon_step().ok());
  const SequenceId other = without_room.create();
  REQUIRE(without_room.begin(other, 5).ok());
  refused(without_room, StatusCode::unsupported,
          [&] { return without_room.cache.encode_ahead(0); });
}

TEST_CASE("arguments out of range are refused", "[cache]") {
  Driver<PagedLayout<>, Int8> d(small());
  const SequenceId a = d.create(), b = d.create();
  REQUIRE(d.step(a, 5).ok());
  const auto bad = StatusCode::invalid_argument;
  const StepPart none{a, 0}, many{a, 71}, twice[] = {{a, 1}, {a, 1}},
                                          three[] = {{a, 1}, {b, 1}, {a, 1}};
  refused(d, StatusCode::too_many_sequences, [&] { return d.cache.create_sequence().status(); });
  refused(d, bad, [&] { return d.cache.begin_step({}); });
  refused(d, bad, [&] { return d.cache.begin_step({&none, 1}); });
  refused(d, StatusCode::too_many_tokens, [&] { return d.cache.begin_step({&many, 1}); });
  refused(d, bad, [&] { return d.cache.begin_step(twice); });
  refused(d, bad, [&] { return d.cache.begin_step(three); });
  refused(d, bad, [&] { return d.cache.truncate(a, 6); });
  refused(d, bad, [&] { return d.cache.truncate(a, -1); });
  refused(d, bad, [&] { return d.cache.evict(a, -1).status(); });
  REQUIRE(d.begin(a, 2).ok());
  const int too_many[] = {3}, negative[] = {-1}, two[] = {1, 1};
  refused(d, bad, [&] { return d.cache.commit_step(too_many); });
  refused(d, bad, [&] { return d.cache.commit_step(negative); });
  refused(d, bad, [&] { return d.cache.commit_step(two); });
  REQUIRE(d.cache.commit_step().ok());
}

TEST_CASE("append refuses null, short strides, NaN and infinity, and works when repeated",
          "[cache]") {
  Driver<PagedLayout<>, Compose<Int4Rotated, AttentionGate>> d(small());
  const SequenceId s = d.create();
  REQUIRE(d.step(s, 62).ok());
  const StepPart part{s, 3};
  REQUIRE(d.cache.begin_step({&part, 1}).ok());
  const TokenRows good = token_rows(d.shape(), 1, 0, 62, 3);
  for (std::vector<float> TokenRows::*member :
       {&TokenRows::keys, &TokenRows::values, &TokenRows::gate_logits}) {
    for (const float x :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      TokenRows bad = good;
      (bad.*member).back() = x;
      refused(d, StatusCode::not_finite,
              [&] { return d.cache.append(0, append_inputs(d.shape(), bad)); });
    }
  }
  AppendInputs in = append_inputs(d.shape(), good);
  in.values.data = nullptr;
  refused(d, StatusCode::null_pointer, [&] { return d.cache.append(0, in); });
  in = append_inputs(d.shape(), good);
  in.gate_logits = {};
  refused(d, StatusCode::null_pointer, [&] { return d.cache.append(0, in); });
  in = append_inputs(d.shape(), good);
  in.keys.head_stride = 63;
  refused(d, StatusCode::invalid_argument, [&] { return d.cache.append(0, in); });
  in = append_inputs(d.shape(), good);
  in.keys.row_stride = 1;
  refused(d, StatusCode::invalid_argument, [&] { return d.cache.append(0, in); });
  // The retry leaves what an undisturbed cache holds.
  REQUIRE(d.cache.append(0, append_inputs(d.shape(), good)).ok());
  REQUIRE(d.cache.append(1, append_inputs(d.shape(), token_rows(d.shape(), 1, 1, 62, 3))).ok());
  REQUIRE(d.cache.commit_step().ok());
  Driver<PagedLayout<>, Compose<Int4Rotated, AttentionGate>> calm(small());
  const SequenceId other = calm.create();
  REQUIRE(calm.step(other, 62).ok());
  REQUIRE(calm.step(other, 3).ok());
  CHECK(d.buffers.pages == calm.buffers.pages);
  CHECK(same_bits(d.attend(s, 3), calm.attend(other, 3)));
}

TEST_CASE("attend refuses what it cannot compute", "[cache]") {
  Driver<PagedLayout<>, Int8> d(small());
  const SequenceId s = d.create();
  REQUIRE(d.step(s, 5).ok());
  const auto r = d.cache.layer(0);
  StepPart part{s, 2};
  const std::vector<float> queries(2 * 4 * 64, 0.5f);
  std::vector<float> output(queries.size(), 3.0f);
  AttendInputs in{{&part, 1}, HeadRows::dense(queries.data(), Scalar::f32, 4, 64)};
  AttendOutputs out{MutableHeadRows::dense(output.data(), Scalar::f32, 4, 64)};
  AlignedBytes workspace(cpu::attend_workspace_bytes(r, in.parts) + 64);
  const auto code = [&](const AttendParams& params = {}) {
    return cpu::attend(r, in, out, workspace.span(), params).code;
  };
  CHECK(code() == StatusCode::ok);
  output.assign(output.size(), 3.0f);
  CHECK(code({.softmax_scale = -1}) == StatusCode::invalid_argument);
  CHECK(code({.logit_soft_cap = -1}) == StatusCode::invalid_argument);
  CHECK(code({.sliding_window_tokens = -1}) == StatusCode::invalid_argument);
  CHECK(code({.latent_output = true}) == StatusCode::invalid_argument);
  part.tokens = 0;
  CHECK(code() == StatusCode::invalid_argument);
  part.tokens = 6;
  CHECK(code() == StatusCode::invalid_argument);
  part.tokens = 2;
  in.queries.row_stride = 63;
  CHECK(code() == StatusCode::invalid_argument);
  in.queries.data = nullptr;
  CHECK(code() == StatusCode::null_pointer);
  in = {{}, HeadRows::dense(queries.data(), Scalar::f32, 4, 64)};
  CHECK(code() == StatusCode::invalid_argument);
  in = {{&part, 1}, HeadRows::dense(queries.data(), Scalar::f32, 4, 64)};
  const std::size_t need = cpu::attend_workspace_bytes(r, in.parts);
  CHECK(cpu::attend(r, in, out, {workspace.span().data(), need - 1}).code ==
        StatusCode::buffer_too_small);
  CHECK(cpu::attend(r, in, out, {workspace.span().data() + 4, need}).code ==
        StatusCode::misaligned);
  for (const float x : output) REQUIRE(x == 3.0f);
}

TEST_CASE("a step that lacks pages or room changes nothing, and fits after a release", "[cache]") {
  CacheConfig c = small();
  Driver<PagedLayout<>, Int8> d(c, {.num_pages = 5});
  const SequenceId a = d.create(), b = d.create();
  REQUIRE(d.fill(a, 128, 64).ok());  // two blocks of two layers
  refused(d, StatusCode::no_free_pages, [&] { return d.begin(b, 1); });
  StepPart both[] = {{a, 1}, {b, 1}};
  refused(d, StatusCode::no_free_pages, [&] { return d.cache.begin_step(both); });
  REQUIRE(d.cache.release(a).ok());
  REQUIRE(d.fill(b, 100, 50).ok());
  CHECK(d.cache.memory_usage().pages_held == 4);
  Driver<ContiguousLayout, Identity> full(c);
  const SequenceId s = full.create();
  REQUIRE(full.fill(s, 320, 64).ok());  // 256 tokens and the spare block
  refused(full, StatusCode::too_many_tokens, [&] { return full.begin(s, 1); });
}
