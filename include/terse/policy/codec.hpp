/// The contract of a codec: how one side (keys or values) of a block is turned into bytes.
///
/// A codec is a stateless type. Its required members:
///
///   static constexpr Granularity granularity;       // do tokens share their scale with others?
///   static constexpr Record record(Side, int width);                // sections of 64 tokens
///   static void encode_token(const CodecContext&, const float* x /*[width]*/, int token,
///                            std::byte* block);                     // open codecs, or
///   static void encode_block(const CodecContext&, const float* x /*[64, width]*/,
///                            std::byte* block);                     // codecs with token groups
///   static float decode(const CodecContext&, const std::byte* block, int token, int channel);
///
/// Blocks begin as zero bytes, and places not yet written are decoded and multiplied by zero: they
/// must decode to finite numbers.
///
/// Optional: a basis (a rotation) in which vectors are stored. Queries and outputs are turned
/// instead of every key and value, so decode never undoes it:
///
///   static void to_basis(const CodecContext&, float* x);      // orthogonal, in place, [width]
///   static void from_basis(const CodecContext&, float* x);    // its inverse
///   static Status supports(Side, int width);                  // widths the codec can serve
///
/// Codecs that know their streams beforehand (policy/calibration.hpp) say so; their basis need not
/// be orthogonal, and something may be taken off all keys:
///
///   static constexpr bool uses_calibration = true;            // CodecContext has it, or null
///   static void query_to_basis(const CodecContext&, float* x);        // in place, [width]
///   static float query_offset(const CodecContext&, const float* x);   // before query_to_basis
///
/// A per-token codec may also move a token without decoding it, which makes compact() exact:
///
///   static void copy_token(const CodecContext&, const std::byte* from, int from_token,
///                          std::byte* to, int to_token);
///
/// A codec whose tokens lie apart may say so; a device then encodes them by as many threads at
/// once, where else one thread encodes a stream. It is asked while compiling; blocks that have an
/// encode_block are sealed by that:
///
///   static constexpr int tokens_at_once(Side);  // 1 ... 64, a power of two: encoding one token of
///                                               // an aligned run of so many neither reads nor
///                                               // writes a byte that another one's writes
///
/// A codec whose errors stand upright on its input, so that decoded vectors are longer, may say so:
/// testing::check_codec then lets errors grow with them where decoded numbers are encoded again.
///
///   static constexpr bool is_unbiased = true;
#pragma once

#include <concepts>
#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/record.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

enum class Granularity : std::uint8_t {
  per_token,    ///< every token carries its own scales: it can be written, moved and dropped alone
  per_channel,  ///< scales are shared by groups of tokens: such a group is encoded at once
};

/// Element formats that kernels read without parameters. Codecs that declare one as `plain_format`
/// store keys `[channel, token]` and values `[token, channel]` of it, and nothing else.
enum class PlainFormat : std::uint8_t { f16, e4m3 };

template <class C>
concept HasGranularity = requires {
  { C::granularity } -> std::convertible_to<Granularity>;
};

template <class C>
concept HasRecord = requires(Side side, int width) {
  { C::record(side, width) } -> std::same_as<Record>;
};

template <class C>
concept CanDecode = requires(const CodecContext& context, const std::byte* block, int i) {
  { C::decode(context, block, i, i) } -> std::convertible_to<float>;
};

/// Encodes one token at a time: no tail is needed.
template <class C>
concept CanEncodeToken = requires(const CodecContext& context, const float* x, std::byte* block) {
  C::encode_token(context, x, 0, block);
};

template <class C>
concept CanEncodeBlock = requires(const CodecContext& context, const float* x, std::byte* block) {
  C::encode_block(context, x, block);
};

/// Says which tokens may be encoded at once.
template <class C>
concept EncodesTokensAtOnce = CanEncodeToken<C> && requires(Side side) {
  { C::tokens_at_once(side) } -> std::convertible_to<int>;
};

template <class C>
concept Codec = HasGranularity<C> && HasRecord<C> && CanDecode<C> &&
    (CanEncodeToken<C> || CanEncodeBlock<C>);

template <class C>
concept HasBasis = requires(const CodecContext& context, float* x) {
  C::to_basis(context, x);
  C::from_basis(context, x);
};

/// At least one of the two functions of a basis.
template <class C>
concept HasHalfBasis = requires(const CodecContext& context, float* x) {
  C::to_basis(context, x);
}
|| requires(const CodecContext& context, float* x) { C::from_basis(context, x); };

template <class C>
concept PlainCodec = Codec<C> && requires {
  { C::plain_format } -> std::convertible_to<PlainFormat>;
};

template <class C>
concept RestrictsWidth = requires(Side side, int width) {
  { C::supports(side, width) } -> std::same_as<Status>;
};

/// Turns `x [width]` into the codec's basis.
template <Codec C>
TERSE_HOST_DEVICE void to_basis(const CodecContext& context, float* x) noexcept {
  if constexpr (HasBasis<C>) C::to_basis(context, x);
}

/// Turns `x [width]` back from the codec's basis.
template <Codec C>
TERSE_HOST_DEVICE void from_basis(const CodecContext& context, float* x) noexcept {
  if constexpr (HasBasis<C>) C::from_basis(context, x);
}

/// Encodes the 64 tokens `x [64, width]`, already in the codec's basis.
template <Codec C>
TERSE_HOST_DEVICE void encode_block(const CodecContext& context, const float* x,
                                    std::byte* block) noexcept {
  if constexpr (CanEncodeBlock<C>) {
    C::encode_block(context, x, block);
  } else {
    for (int t = 0; t < block_tokens; ++t) {
      C::encode_token(context, x + static_cast<std::size_t>(t * context.width), t, block);
    }
  }
}

/// Most channels of a stream.
inline constexpr int max_stream_width = 4096;

/// Whether the codec serves streams of `width` channels.
template <Codec C>
[[nodiscard]] Status supports_width(Side side, int width) noexcept {
  if (width <= 0 || width > max_stream_width) {
    return error(StatusCode::invalid_argument, "terse::Codec: width must be in 1..4096", width);
  }
  if constexpr (RestrictsWidth<C>) return C::supports(side, width);
  return {};
}

/// Whether a codec that derives from `Base` leaves encode_token and decode to it.
template <class C, class Base>
inline constexpr bool encodes_and_decodes_as =
    &C::encode_token == &Base::encode_token&&& C::decode == &Base::decode;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
