// Codecs: the library's pass, and of broken ones the report says what is wrong.
#include "terse/testing/check_codec.hpp"

#include <string>

#include "terse/policy/identity.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/int4_rotated.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"
#include "terse/quant/nvfp4.hpp"
#include "terse/quant/q4_0.hpp"
#include "terse/quant/q8_0.hpp"
#include "terse/quant/turboquant.hpp"
#include "terse/quant/turboquant_prod.hpp"

#include "tests/support/catch.hpp"

using namespace terse;
using terse::testing::check_codec;
using terse::testing::Report;

namespace {

template <Codec C>
void check_passes(int width) {
  const Report r = check_codec<C>(width);
  CAPTURE(width);
  CHECK(r.failure == "");
  CHECK(r.checks > 30);
}

bool says(const Report& report, const char* text) {
  INFO(report.failure);
  return report.failure.find(text) != std::string::npos;
}

// The broken codecs are Int8 or Identity with one mistake each.

struct UnalignedRecord : Int8 {
  static constexpr Record record(Side side, int width) {
    Record r = Int8::record(side, width);
    r.bytes -= 64;
    return r;
  }
};

struct OverlappingSections : Int8 {
  static constexpr Record record(Side side, int width) {
    Record r = Int8::record(side, width);
    r.sections[1].offset_bytes -= 16;
    return r;
  }
};

struct WritesBehindTheRecord : Int8 {
  static void encode_token(const CodecContext& context, const float* x, int token,
                           std::byte* block) {
    Int8::encode_token(context, x, token, block);
    block[record(context.side, context.width).bytes] = std::byte{1};
  }
};

struct ReadsBehindItsInput : Int8 {
  static void encode_token(const CodecContext& context, const float* x, int token,
                           std::byte* block) {
    float copy[4096];
    std::memcpy(copy, x, static_cast<std::size_t>(context.width) * sizeof(float));
    if (x[context.width] > 1.0f) copy[0] += 1.0f;
    Int8::encode_token(context, copy, token, block);
  }
};

struct AddsToOldBytes : Int8 {
  static void encode_token(const CodecContext& context, const float* x, int token,
                           std::byte* block) {
    const std::byte old = block[0];
    Int8::encode_token(context, x, token, block);
    block[0] |= old;
  }
};

struct Counts : Int8 {
  static inline int calls = 0;
  static void encode_token(const CodecContext& context, const float* x, int token,
                           std::byte* block) {
    Int8::encode_token(context, x, token, block);
    if (++calls % 3 == 0) block[static_cast<std::size_t>(token)] ^= std::byte{1};
  }
};

/// Claims to be per token, but all tokens share the first one's scale.
struct SharesAScale : Int8 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    const Record r = record(context.side, context.width);
    const unsigned code =
        load_code<8>(block, code_place<8>(context.side, context.width, token, channel));
    return (static_cast<float>(code) - 128.0f) *
           terse::detail::load_half(block + r.sections[1].offset_bytes, 0);
  }
};

struct TurnsTheBlock : Int8 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return -Int8::decode(context, block, token, channel);
  }
};

struct DividesByZero : Int8 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    const float x = Int8::decode(context, block, token, channel);
    const Record r = record(context.side, context.width);
    const float scale = terse::detail::load_half(block + r.sections[1].offset_bytes, token);
    return x / scale * scale;  // NaN where the scale is zero
  }
};

struct Overflows : Identity {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return to_float(to_f16(Identity::decode(context, block, token, channel) * 1.001f));
  }
};

struct CopiesCodesOnly : Int8 {
  static void copy_token(const CodecContext& context, const std::byte* from, int from_token,
                         std::byte* to, int to_token) {
    for (int c = 0; c < context.width; ++c) {
      store_code<8>(to, code_place<8>(context.side, context.width, to_token, c),
                    load_code<8>(from, code_place<8>(context.side, context.width, from_token, c)));
    }
  }
};

struct CopiesTooMuch : Int8 {
  static void copy_token(const CodecContext& context, const std::byte* from, int, std::byte* to,
                         int) {
    std::memcpy(to, from, record(context.side, context.width).bytes);
  }
};

struct NotInverse : Int8 {
  static void to_basis(const CodecContext& context, float* x) {
    HadamardBasis<64>::to_basis(context, x);
  }
  static void from_basis(const CodecContext&, float*) {}
};

struct NotOrthogonal : Int8 {
  static void to_basis(const CodecContext& context, float* x) {
    for (int c = 0; c < context.width; ++c) x[c] *= 2.0f;
  }
  static void from_basis(const CodecContext& context, float* x) {
    for (int c = 0; c < context.width; ++c) x[c] *= 0.5f;
  }
};

struct OnlyWidth64 : Int8 {
  static Status supports(Side, int width) {
    if (width == 64) return {};
    return error(StatusCode::unsupported, "OnlyWidth64: width must be 64", width);
  }
};

/// Values 16 tokens apart share bytes.
struct ClaimsTooMany : TurboQuant2 {
  static constexpr int tokens_at_once(Side) { return 64; }
};

/// Its kernels would subtract no centre.
struct WrongCentre : Int8 {
  static constexpr AffineFormat affine_format{.bits = 8};
};

/// Values are stored like keys, which the kernels of plain formats do not expect.
struct WrongOrder : Identity {
  static CodecContext turned(const CodecContext& context) { return {Side::key, context.width}; }
  static void encode_token(const CodecContext& context, const float* x, int token,
                           std::byte* block) {
    Identity::encode_token(turned(context), x, token, block);
  }
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return Identity::decode(turned(context), block, token, channel);
  }
  static void copy_token(const CodecContext& context, const std::byte* from, int from_token,
                         std::byte* to, int to_token) {
    Identity::copy_token(turned(context), from, from_token, to, to_token);
  }
};

/// Stores the inverse of each token's largest magnitude: of a token not yet written, that is zero.
struct InverseScale : Int8 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    const Record r = record(context.side, context.width);
    const float scale = terse::detail::load_half(block + r.sections[1].offset_bytes, token);
    const unsigned code =
        load_code<8>(block, code_place<8>(context.side, context.width, token, channel));
    if (scale == 0.0f && code == 0) return 1.0f / scale;
    return Int8::decode(context, block, token, channel);
  }
};

/// Shrinks every number at each encoding.
struct Drifts : Int8 {
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    return 1.9f * Int8::decode(context, block, token, channel);
  }
};

}  // namespace

TEST_CASE("all codecs of the library conform, at every width") {
  for (const int width : {16, 20, 64, 80, 96, 128, 256}) {
    check_passes<Identity>(width);
    check_passes<Fp8>(width);
    check_passes<Int8>(width);
    check_passes<Int4Rotated>(width);
    check_passes<Q8_0>(width);
    check_passes<Q4_0>(width);
    check_passes<Kivi2::key_codec>(width);
    check_passes<Kivi2::value_codec>(width);
    check_passes<Kivi3::key_codec>(width);
    check_passes<Kivi3::value_codec>(width);
    check_passes<AffineGroup<AffineSpec{.bits = 3, .rule = ScaleRule::least_squares}>>(width);
    check_passes<TurboQuant2>(width);
    check_passes<TurboQuant3>(width);
    check_passes<TurboQuant4>(width);
    check_passes<NvFp4>(width);
    check_passes<TurboQuantProd3::key_codec>(width);
    check_passes<Kivi4::key_codec>(width);
    check_passes<Kivi4::value_codec>(width);
  }
}

TEST_CASE("broken codecs are found, and what is wrong is said") {
  CHECK(says(check_codec<UnalignedRecord>(64), "multiple of 128"));
  CHECK(says(check_codec<OverlappingSections>(64), "overlap"));
  CHECK(says(check_codec<WritesBehindTheRecord>(64), "writes outside the record"));
  CHECK(says(check_codec<ReadsBehindItsInput>(64), "reads outside its input"));
  CHECK(says(check_codec<AddsToOldBytes>(64), "bytes that were there before"));
  CHECK(says(check_codec<Counts>(64), "deterministic"));
  CHECK(says(check_codec<SharesAScale>(64), "a token changes what others decode to"));
  CHECK(says(check_codec<TurnsTheBlock>(64), "farther from the input than zeros"));
  CHECK(says(check_codec<DividesByZero>(64), "zeros decode to infinity or NaN"));
  CHECK(says(check_codec<Overflows>(64), "65504 decode to infinity or NaN"));
  CHECK(says(check_codec<CopiesCodesOnly>(64), "does not move a token exactly"));
  CHECK(says(check_codec<CopiesTooMuch>(64), "copy_token changes other tokens"));
  CHECK(says(check_codec<NotInverse>(64), "does not invert"));
  CHECK(says(check_codec<NotOrthogonal>(64), "not orthogonal"));
  CHECK(says(check_codec<Drifts>(64), "farther than the first encoding"));
  CHECK(says(check_codec<WrongCentre>(64), "affine_format is not what decode reads"));
  CHECK(says(check_codec<WrongOrder>(Side::value, 64), "plain_format is not what decode reads"));
  CHECK(says(check_codec<ClaimsTooMany>(Side::value, 64), "write to the same byte"));
  CHECK(says(check_codec<InverseScale>(64), "zero bytes decode to infinity or NaN"));
}

TEST_CASE("a width that the codec refuses is reported with the codec's text") {
  CHECK(check_codec<OnlyWidth64>(64).ok());
  CHECK(says(check_codec<OnlyWidth64>(80), "OnlyWidth64: width must be 64"));
  CHECK(says(check_codec<Int8>(0), "width must be in"));
}

TEST_CASE("one side can be checked alone, and the report names it") {
  CHECK(check_codec<Int8>(Side::value, 64).ok());
  CHECK(says(check_codec<TurnsTheBlock>(Side::value, 80), "values of width 80"));
}
