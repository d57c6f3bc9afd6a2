// 16-bit storage: the control row, tails and sinks.
#include "terse/policy/identity.hpp"

#include <vector>

#include "tests/quant/codec_block.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

TEST_CASE("16 bits per element") {
  CHECK(bits_per_element(Identity::record(Side::key, 64), 64) == 16.0);
  CHECK(bits_per_element(Identity::record(Side::value, 80), 80) == 16.0);
}

TEST_CASE("every number becomes its nearest fp16 number, finite ones stay finite") {
  Random random(1);
  auto x = random.normals(64 * 20);
  x[3] = 70000.0f;
  x[4] = -3e38f;
  for (const Side side : {Side::key, Side::value}) {
    const auto decoded = round_trip<Identity>(side, 20, x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(decoded[i] == to_float(to_f16_saturating(x[i])));
    }
    CHECK(stays_finite<Identity>(side, 20));
  }
}

TEST_CASE("keys lie channel by channel, values token by token") {
  CodecBlock<Identity> keys(Side::key, 20), values(Side::value, 20);
  std::vector<float> x(64 * 20, 0.0f);
  x[7 * 20 + 3] = 1.0f;  // 0x3c00
  keys.encode(x);
  values.encode(x);
  CHECK(keys.byte(2 * (3 * 64 + 7) + 1) == 0x3c);
  CHECK(values.byte(2 * (7 * 20 + 3) + 1) == 0x3c);
}

TEST_CASE("blocks with room for other numbers of tokens, as sinks have") {
  for (const Side side : {Side::key, Side::value}) {
    const CodecContext context{side, 20};
    std::vector<std::byte> block(16 * 20 * 2, std::byte{0});
    Random random(2);
    const auto x = random.normals(16 * 20);
    for (int t = 0; t < 16; ++t) Identity::store(context, x.data() + t * 20, 16, t, block.data());
    for (int t = 0; t < 16; ++t) {
      for (int c = 0; c < 20; ++c) {
        REQUIRE(Identity::load(context, block.data(), 16, t, c) ==
                to_float(to_f16(x[static_cast<std::size_t>(t * 20 + c)])));
      }
    }
  }
}

TEST_CASE("copy_token moves a token exactly and nothing else") {
  Random random(3);
  for (const Side side : {Side::key, Side::value}) {
    CodecBlock<Identity> from(side, 20), to(side, 20);
    from.encode(random.normals(64 * 20));
    to.encode(random.normals(64 * 20));
    const auto source = from.decode(), before = to.decode();
    Identity::copy_token(from.context(), from.bytes().data(), 40, to.bytes().data(), 2);
    const auto after = to.decode();
    for (int t = 0; t < 64; ++t) {
      for (int c = 0; c < 20; ++c) {
        REQUIRE(after[to.index(t, c)] ==
                (t == 2 ? source[from.index(40, c)] : before[to.index(t, c)]));
      }
    }
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Identity>(Side::key, 64) == 0x2c0462e92ec8abd7ull);
  CHECK(golden_hash<Identity>(Side::value, 80) == 0x6d2031a2b2f3c2dull);
}
