/// `Compose<Parts...>`: a policy from parts. The order of writing never matters.
///
/// Each part provides one or more of: a codec for both sides (a Codec), `key_codec` and
/// `value_codec`, `tail`, `tail_codec`, a projector (`using projector`), an evictor (`using
/// evictor`), `reindex`.
/// Application order is fixed: project, choose tokens, go to the codec's basis, quantise.
#pragma once

#include <type_traits>

#include "terse/config.hpp"
#include "terse/policy/codec.hpp"
#include "terse/policy/compatibility.hpp"
#include "terse/policy/evictor.hpp"
#include "terse/policy/identity.hpp"
#include "terse/policy/position.hpp"
#include "terse/policy/projector.hpp"
#include "terse/policy/tail.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

namespace detail {

template <class P>
concept GivesKeyCodec = requires {
  typename P::key_codec;
};
template <class P>
concept GivesValueCodec = requires {
  typename P::value_codec;
};
template <class P>
concept GivesProjector = requires {
  typename P::projector;
}
|| Projector<P>;
template <class P>
concept GivesEvictor = requires {
  typename P::evictor;
}
|| requires { typename P::Params; };
template <class P>
concept GivesTail = requires {
  { P::tail } -> std::convertible_to<TailSpec>;
};
template <class P>
concept GivesTailCodec = requires {
  typename P::tail_codec;
};
template <class P>
concept GivesReindex = requires {
  { P::reindex } -> std::convertible_to<Reindex>;
};
/// Anything that looks like a codec, complete or not, so that its gaps get their own message.
template <class P>
concept LooksLikeCodec = HasRecord<P> || HasGranularity<P> || CanDecode<P>;

template <class P>
inline constexpr bool fills_a_slot =
    LooksLikeCodec<P> || GivesKeyCodec<P> || GivesValueCodec<P> || GivesProjector<P> ||
    GivesEvictor<P> || GivesTail<P> || GivesTailCodec<P> || GivesReindex<P>;

template <class P>
struct KeyCodecOf {
  using type = P;
};
template <GivesKeyCodec P>
struct KeyCodecOf<P> {
  using type = typename P::key_codec;
};
template <class P>
struct ValueCodecOf {
  using type = P;
};
template <GivesValueCodec P>
struct ValueCodecOf<P> {
  using type = typename P::value_codec;
};
template <class P>
struct TailCodecOf {
  using type = typename P::tail_codec;
};
template <class P>
struct ProjectorOf {
  using type = P;
};
template <class P>
  requires requires { typename P::projector; }
struct ProjectorOf<P> {
  using type = typename P::projector;
};
template <class P>
struct EvictorOf {
  using type = P;
};
template <class P>
  requires requires { typename P::evictor; }
struct EvictorOf<P> {
  using type = typename P::evictor;
};

template <class P>
inline constexpr bool gives_key = LooksLikeCodec<P> || GivesKeyCodec<P>;
template <class P>
inline constexpr bool gives_value = LooksLikeCodec<P> || GivesValueCodec<P>;

/// The first part for which `Has` holds, mapped by `Get`; `Default` if there is none.
template <template <class> class Get, class Default, bool... Has>
struct Pick {
  template <class... Parts>
  static consteval auto find() {
    return std::type_identity<Default>{};
  }
};
template <template <class> class Get, class Default, bool... Rest>
struct Pick<Get, Default, true, Rest...> {
  template <class P, class... Parts>
  static consteval auto find() {
    return std::type_identity<typename Get<P>::type>{};
  }
};
template <template <class> class Get, class Default, bool... Rest>
struct Pick<Get, Default, false, Rest...> {
  template <class P, class... Parts>
  static consteval auto find() {
    return Pick<Get, Default, Rest...>::template find<Parts...>();
  }
};

template <class P>
constexpr void use_tail(TailSpec& spec) {
  if constexpr (GivesTail<P>) spec = P::tail;
}
template <class P>
constexpr void use_reindex(Reindex& value) {
  if constexpr (GivesReindex<P>) {
    if (P::reindex == Reindex::cache_index) value = Reindex::cache_index;
  }
}

}  // namespace detail

template <class... Parts>
struct Compose {
  static_assert((detail::fills_a_slot<Parts> && ...),
                "terse::Compose: a part provides none of codec, tail, tail_codec, projector, "
                "evictor, reindex; it would have no effect; remove it, or give it the members of "
                "terse/policy/codec.hpp, evictor.hpp or projector.hpp.");
  static_assert((int{detail::gives_key<Parts>} + ... + 0) <= 1,
                "terse::Compose: two codecs for the keys; a cache stores one code per element; "
                "keep one.");
  static_assert((int{detail::gives_value<Parts>} + ... + 0) <= 1,
                "terse::Compose: two codecs for the values; a cache stores one code per element; "
                "keep one.");
  static_assert((int{detail::GivesProjector<Parts>} + ... + 0) <= 1,
                "terse::Compose: two projectors; latents of latents are one projector with the "
                "product of the factors; keep one.");
  static_assert((int{detail::GivesEvictor<Parts>} + ... + 0) <= 1,
                "terse::Compose: two evictors; they would disagree about who drops a token; keep "
                "one, or write one evictor that calls both.");
  static_assert((int{detail::GivesTail<Parts>} + ... + 0) <= 1,
                "terse::Compose: two tail rules; keep one, or set PolicyConfig::tail.");
  static_assert((int{detail::GivesTailCodec<Parts>} + ... + 0) <= 1,
                "terse::Compose: two codecs for the tail; its tokens lie there in one form; keep "
                "one.");

  using key_codec =
      typename decltype(detail::Pick<detail::KeyCodecOf, Identity,
                                     detail::gives_key<Parts>...>::template find<Parts...>())::type;
  using value_codec =
      typename decltype(detail::Pick<
                        detail::ValueCodecOf, Identity,
                        detail::gives_value<Parts>...>::template find<Parts...>())::type;
  using tail_codec =
      typename decltype(detail::Pick<
                        detail::TailCodecOf, Identity,
                        detail::GivesTailCodec<Parts>...>::template find<Parts...>())::type;
  using projector =
      typename decltype(detail::Pick<
                        detail::ProjectorOf, NoProjection,
                        detail::GivesProjector<Parts>...>::template find<Parts...>())::type;
  using evictor =
      typename decltype(detail::Pick<
                        detail::EvictorOf, NoEviction,
                        detail::GivesEvictor<Parts>...>::template find<Parts...>())::type;

  static constexpr TailSpec tail = [] {
    TailSpec spec{};
    (detail::use_tail<Parts>(spec), ...);
    return spec;
  }();
  static constexpr Reindex reindex = [] {
    Reindex value = Reindex::original;
    (detail::use_reindex<Parts>(value), ...);
    return value;
  }();
  static constexpr bool projects = !std::is_same_v<projector, NoProjection>;
  static constexpr Signal signal = detail::signal_of<evictor>();

  static_assert(
      detail::CheckParts<key_codec, value_codec, tail_codec, projector, evictor, reindex>::passed);
};

/// One codec for the keys and another for the values.
template <class Key, class Value>
struct KeyValue {
  using key_codec = Key;
  using value_codec = Value;
};

namespace detail {

template <class P>
concept IsPolicy = requires {
  typename P::key_codec;
  typename P::value_codec;
  typename P::tail_codec;
  typename P::projector;
  typename P::evictor;
  { P::reindex } -> std::convertible_to<Reindex>;
};

template <class P>
struct PolicyOf {
  using type = Compose<P>;
};
template <IsPolicy P>
struct PolicyOf<P> {
  using type = P;
};

}  // namespace detail

/// A composed policy, or a single part made into one.
template <class P>
using PolicyOf = typename detail::PolicyOf<P>::type;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
