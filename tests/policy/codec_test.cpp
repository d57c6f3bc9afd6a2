// The codec's contract: what counts as a codec, and the helpers around it.
#include "terse/policy/codec.hpp"

#include <vector>

#include "terse/policy/identity.hpp"

#include "tests/support/catch.hpp"

using namespace terse;

namespace {

/// Stores whole blocks of signs; only multiples of 8 channels.
struct Signs {
  static constexpr Granularity granularity = Granularity::per_channel;
  static constexpr Record record(Side, int width) {
    Record r;
    r.add(static_cast<std::size_t>(width) * 8);
    return r;
  }
  static void encode_block(const CodecContext& context, const float* x, std::byte* block) {
    for (int i = 0; i < 64 * context.width; ++i) {
      const auto bit = std::byte{1} << (i % 8);
      block[i / 8] = x[i] < 0 ? block[i / 8] | bit : block[i / 8] & ~bit;
    }
  }
  static float decode(const CodecContext& context, const std::byte* block, int token, int channel) {
    const int i = token * context.width + channel;
    return (block[i / 8] >> (i % 8) & std::byte{1}) != std::byte{0} ? -1.0f : 1.0f;
  }
  static Status supports(Side, int width) {
    if (width % 8 == 0) return {};
    return error(StatusCode::unsupported, "Signs: width must be a multiple of 8", width);
  }
};

/// As Signs, in the basis of the negated vectors.
struct NegatedSigns : Signs {
  static void to_basis(const CodecContext& context, float* x) {
    for (int c = 0; c < context.width; ++c) x[c] = -x[c];
  }
  static void from_basis(const CodecContext& context, float* x) { to_basis(context, x); }
};

struct NoDecode {
  static constexpr Granularity granularity = Granularity::per_token;
  static constexpr Record record(Side, int) { return {}; }
  static void encode_token(const CodecContext&, const float*, int, std::byte*) {}
};

}  // namespace

TEST_CASE("concepts see what a codec can do") {
  static_assert(Codec<Signs> && CanEncodeBlock<Signs> && !CanEncodeToken<Signs>);
  static_assert(Codec<Identity> && CanEncodeToken<Identity> && !CanEncodeBlock<Identity>);
  static_assert(!Codec<NoDecode> && HasRecord<NoDecode> && !CanDecode<NoDecode>);
  static_assert(HasBasis<NegatedSigns> && !HasBasis<Signs>);
  static_assert(PlainCodec<Identity> && !PlainCodec<Signs>);
  static_assert(RestrictsWidth<Signs> && !RestrictsWidth<Identity>);
  static_assert(!Codec<int>);
}

TEST_CASE("widths are checked, by the codec's own rule too") {
  CHECK(supports_width<Identity>(Side::key, 1).ok());
  CHECK(supports_width<Identity>(Side::key, 4096).ok());
  CHECK_FALSE(supports_width<Identity>(Side::key, 0).ok());
  CHECK_FALSE(supports_width<Identity>(Side::key, 4097).ok());
  CHECK(supports_width<Signs>(Side::value, 80).ok());
  const Status s = supports_width<Signs>(Side::value, 20);
  CHECK(s.code == StatusCode::unsupported);
  CHECK(s.detail == 20);
}

TEST_CASE("a basis is applied where there is one") {
  float x[] = {1, 2, 3, 4, 5, 6, 7, 8};
  const CodecContext context{Side::key, 8};
  to_basis<Signs>(context, x);
  CHECK(x[7] == 8);
  to_basis<NegatedSigns>(context, x);
  CHECK(x[7] == -8);
  from_basis<NegatedSigns>(context, x);
  CHECK(x[7] == 8);
}

TEST_CASE("encode_block serves codecs of tokens and of blocks") {
  constexpr int width = 16;
  std::vector<float> x(64 * width);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = i % 3 == 0 ? -1.0f : 1.0f;
  const CodecContext context{Side::value, width};
  std::vector<std::byte> signs(Signs::record(Side::value, width).bytes);
  std::vector<std::byte> plain(Identity::record(Side::value, width).bytes);
  encode_block<Signs>(context, x.data(), signs.data());
  encode_block<Identity>(context, x.data(), plain.data());
  for (int t = 0; t < 64; ++t) {
    for (int c = 0; c < width; ++c) {
      const float want = x[static_cast<std::size_t>(t * width + c)];
      REQUIRE(Signs::decode(context, signs.data(), t, c) == want);
      REQUIRE(Identity::decode(context, plain.data(), t, c) == want);
    }
  }
}
