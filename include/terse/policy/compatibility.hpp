/// Every rule about which parts of a policy fit together, with its message.
/// Rules speak of properties, never of methods, so that users' own parts are covered.
#pragma once

#include <type_traits>

#include "terse/config.hpp"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/policy/evictor.hpp"
#include "terse/policy/position.hpp"
#include "terse/policy/projector.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace detail {

template <class KeyCodec, class ValueCodec, class TailForm, class ProjectorPart, class EvictorPart,
          Reindex reindex>
struct CheckParts {
  static_assert(HasGranularity<KeyCodec> && HasGranularity<ValueCodec>,
                "terse::Compose: a codec lacks `granularity`; the cache must know whether tokens "
                "share scales; add `static constexpr terse::Granularity granularity`.");
  static_assert(HasRecord<KeyCodec> && HasRecord<ValueCodec>,
                "terse::Compose: a codec lacks `record`; stored bytes are computed from it; add "
                "`static constexpr terse::Record record(terse::Side, int width)`.");
  static_assert(CanDecode<KeyCodec> && CanDecode<ValueCodec>,
                "terse::Compose: a codec lacks `decode`; attention reads blocks through it; add "
                "`static float decode(const terse::CodecContext&, const std::byte* block, int "
                "token, int channel)`.");
  static_assert((CanEncodeToken<KeyCodec> ||
                 CanEncodeBlock<KeyCodec>)&&(CanEncodeToken<ValueCodec> ||
                                             CanEncodeBlock<ValueCodec>),
                "terse::Compose: a codec can encode neither a token nor a block; add "
                "`encode_token` or `encode_block`.");
  static_assert(HasBasis<KeyCodec> == HasHalfBasis<KeyCodec> &&
                    HasBasis<ValueCodec> == HasHalfBasis<ValueCodec>,
                "terse::Compose: a codec has only one of `to_basis` and `from_basis`; queries and "
                "outputs need both; add the other.");
  static_assert(Codec<TailForm> && CanEncodeToken<TailForm>,
                "terse::Compose: the codec of the tail cannot encode a token; tokens come to it "
                "one by one; use Identity or Int8, or give it `encode_token`.");
  static_assert(!HasHalfBasis<TailForm> && !UsesCalibration<TailForm>,
                "terse::Compose: the codec of the tail has a basis or a calibration of its own, "
                "but tails hold vectors in the basis of the policy's codecs; use one without.");
  static_assert(Evictor<EvictorPart>,
                "terse::Compose: an evictor lacks `select` or `scatters`; see "
                "terse/policy/evictor.hpp for the contract.");
  static_assert(CanValidate<EvictorPart>,
                "terse::Compose: the evictor's Params lacks `validate`; budgets and windows are "
                "checked at creation; add `terse::Status validate() const`.");
  static_assert(
      signal_of<EvictorPart>() != Signal::column_sum ||
          requires(TokenStateOf<EvictorPart> & s) { EvictorPart::observe(s, 0.0f); },
      "terse::Compose: the evictor asks for Signal::column_sum but cannot receive it; "
      "add `static void observe(TokenState&, float column_sum)`.");
  static_assert(
      signal_of<EvictorPart>() != Signal::gate_logit ||
          requires(TokenStateOf<EvictorPart> & s) { EvictorPart::admit(s, 0.0f); },
      "terse::Compose: the evictor asks for Signal::gate_logit but cannot receive it; "
      "add `static void admit(TokenState&, float gate_logit)`.");
  static_assert(signal_of<EvictorPart>() == Signal::none || token_state_bytes<EvictorPart> > 0,
                "terse::Compose: the evictor asks for a signal but keeps no state per token, so "
                "nothing could come of it; add a non-empty `struct TokenState`.");
  static_assert(std::is_trivially_copyable_v<TokenStateOf<EvictorPart>>,
                "terse::Compose: the evictor's TokenState is not trivially copyable, but caches "
                "fork, move and save it as bytes; use plain numbers.");
  static_assert(reindex == Reindex::original || HasPrefix<EvictorPart>,
                "terse::Compose: Reindex::cache_index needs an evictor whose survivors are a "
                "prefix and a window, because only two rotations of the query are applied; use "
                "StreamingLLM, or keep Reindex::original.");
  static_assert(reindex == Reindex::original || !EvictorPart::scatters,
                "terse::Compose: Reindex::cache_index with an evictor whose survivors scatter "
                "would need every key rotated again; use StreamingLLM, or keep "
                "Reindex::original.");
  static constexpr bool passed = true;
};

}  // namespace detail
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
