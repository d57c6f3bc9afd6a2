// Composition: the order of writing never matters, defaults, single parts, users' parts.
#include "terse/policy/compose.hpp"

#include <type_traits>

#include "terse/evict/attention_gate.hpp"
#include "terse/evict/h2o.hpp"
#include "terse/evict/streaming_llm.hpp"
#include "terse/lowrank/palu.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/int4_rotated.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"
#include "terse/quant/nvfp4.hpp"
#include "terse/quant/turboquant.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

namespace {

constexpr bool same_tail(const TailSpec& a, const TailSpec& b) {
  return a.min_tokens == b.min_tokens && a.granule_tokens == b.granule_tokens &&
         a.sink_tokens == b.sink_tokens;
}

/// Whether a cache reads the same of both policies.
template <class A, class B>
consteval bool same() {
  return std::is_same_v<typename A::key_codec, typename B::key_codec> &&
         std::is_same_v<typename A::value_codec, typename B::value_codec> &&
         std::is_same_v<typename A::tail_codec, typename B::tail_codec> &&
         std::is_same_v<typename A::projector, typename B::projector> &&
         std::is_same_v<typename A::evictor, typename B::evictor> && A::reindex == B::reindex &&
         A::projects == B::projects && A::signal == B::signal && same_tail(A::tail, B::tail);
}
template <class A, class B>
constexpr bool same_policy = same<A, B>();

using LongTail = Tail<TailSpec{.min_tokens = 64, .granule_tokens = 128, .sink_tokens = 4}>;

/// Gives the values' codec only.
struct ValuesInFp8 {
  using value_codec = Fp8;
};
struct KeysInInt8 {
  using key_codec = Int8;
};

}  // namespace

TEST_CASE("an empty composition is the identity") {
  using P = Compose<>;
  static_assert(std::is_same_v<P::key_codec, Identity> && std::is_same_v<P::value_codec, Identity>);
  static_assert(std::is_same_v<P::projector, NoProjection> &&
                std::is_same_v<P::evictor, NoEviction>);
  static_assert(!P::projects && P::signal == Signal::none && P::reindex == Reindex::original);
  static_assert(P::tail.min_tokens == 0 && P::tail.sink_tokens == 0);
}

TEST_CASE("the order of writing never matters") {
  using P = Compose<Int4Rotated, LongTail, PaluJoint, StreamingLLM>;
  static_assert(same_policy<P, Compose<LongTail, Int4Rotated, PaluJoint, StreamingLLM>>);
  static_assert(same_policy<P, Compose<StreamingLLM, PaluJoint, LongTail, Int4Rotated>>);
  static_assert(same_policy<P, Compose<PaluJoint, StreamingLLM, Int4Rotated, LongTail>>);
  static_assert(same_policy<Compose<Kivi2, H2O>, Compose<H2O, Kivi2>>);
  static_assert(same_policy<Compose<Int8, AttentionGate>, Compose<AttentionGate, Int8>>);
  static_assert(same_policy<Compose<KeysInInt8, ValuesInFp8>, Compose<ValuesInFp8, KeysInInt8>>);
  static_assert(!same_policy<Compose<Kivi2, H2O>, Compose<Kivi4, H2O>>);
}

TEST_CASE("every part arrives in its place") {
  using P = Compose<PaluPerHead, Kivi2, H2O>;
  static_assert(std::is_same_v<P::key_codec, Kivi2::key_codec>);
  static_assert(std::is_same_v<P::value_codec, Kivi2::value_codec>);
  static_assert(std::is_same_v<P::projector, PaluPerHead> && P::projects);
  static_assert(std::is_same_v<P::evictor, H2O> && P::signal == Signal::column_sum);
  static_assert(P::tail.min_tokens == 1 && P::tail.granule_tokens == 128);
}

TEST_CASE("a method's tail comes with it, and one of its own may be given") {
  static_assert(Compose<Kivi<KiviSpec{.residual_tokens = 64}>>::tail.granule_tokens == 64);
  static_assert(Compose<Int8, LongTail>::tail.sink_tokens == 4);
  static_assert(Compose<Int8>::tail.min_tokens == 0);
}

TEST_CASE("tails are 16-bit unless a part gives them a codec") {
  using Short = Compose<TailCodec<Int8>, Kivi2>;
  static_assert(std::is_same_v<Short::tail_codec, Int8> && !has_f16_tail<Short>);
  static_assert(std::is_same_v<Short::key_codec, Kivi2::key_codec>);
  static_assert(Short::tail.granule_tokens == Kivi2::tail.granule_tokens);
  static_assert(std::is_same_v<Compose<Kivi2>::tail_codec, Identity> &&
                has_f16_tail<Compose<Int8>>);
  static_assert(!same_policy<Short, Compose<Kivi2>>);
}

TEST_CASE("reindexing comes with StreamingLLM") {
  static_assert(Compose<Kivi2, StreamingLLM>::reindex == Reindex::cache_index);
  static_assert(Compose<Kivi2, SinkWindow>::reindex == Reindex::original);
  static_assert(Compose<Kivi2, H2O>::reindex == Reindex::original);
}

TEST_CASE("keys and values may have codecs of their own") {
  using P = Compose<KeyValue<Int8, Fp8>>;
  static_assert(std::is_same_v<P::key_codec, Int8> && std::is_same_v<P::value_codec, Fp8>);
  using Half = Compose<ValuesInFp8>;
  static_assert(std::is_same_v<Half::key_codec, Identity> &&
                std::is_same_v<Half::value_codec, Fp8>);
  static_assert(same_policy<P, Compose<KeysInInt8, ValuesInFp8>>);
}

TEST_CASE("a single part counts as a policy, a policy stays itself") {
  static_assert(same_policy<PolicyOf<Kivi2>, Compose<Kivi2>>);
  static_assert(std::is_same_v<PolicyOf<Kivi2>, Compose<Kivi2>>);
  static_assert(std::is_same_v<PolicyOf<Compose<Kivi2, H2O>>, Compose<Kivi2, H2O>>);
  static_assert(std::is_same_v<PolicyOf<H2O>::key_codec, Identity>);
}

TEST_CASE("quantizers compose with every evictor and with latents") {
  const auto check = []<class Codec>(std::type_identity<Codec>) {
    static_assert(Compose<Codec, StreamingLLM>::reindex == Reindex::cache_index);
    static_assert(Compose<Codec, H2O>::signal == Signal::column_sum);
    static_assert(Compose<Codec, AttentionGate>::signal == Signal::gate_logit);
    static_assert(Compose<Codec, PaluJoint>::projects);
    static_assert(Compose<Codec, PaluJoint, H2O>::projects);
    static_assert(Compose<PaluPerHead, StreamingLLM, Codec>::projects);
  };
  check(std::type_identity<Kivi2>{});
  check(std::type_identity<Kivi4>{});
  check(std::type_identity<Int8>{});
  check(std::type_identity<Int4Rotated>{});
  check(std::type_identity<TurboQuant3>{});
  check(std::type_identity<NvFp4>{});
}
