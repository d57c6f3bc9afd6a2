// q4_0: the numbers of ggml's block format, found by another implementation of its formula.
#include "terse/quant/q4_0.hpp"

#include <cmath>
#include <iterator>

#include "tests/quant/codec_block.hpp"
#include "tests/quant/ggml_blocks.hpp"
#include "tests/support/catch.hpp"

using namespace terse;
using namespace terse::tests;

namespace {

#if TERSE_X86_DISPATCH
/// The encoder as compiled for a processor with fused multiply-adds.
[[gnu::target("fma"), gnu::flatten]] void encode_with_fma(const CodecContext& context,
                                                          const float* x, std::byte* block) {
  for (int t = 0; t < block_tokens; ++t) Q4_0Plain::encode_token(context, x + t * 32, t, block);
}
#endif

/// Pairs of a largest number and another one whose code a fused multiply-add would change.
constexpr int near_boundaries[][2] = {{-12727414, -5568244}, {11143862, -3482456},
                                      {-10912186, 6138104},  {10708305, 4684884},
                                      {-12948550, -5664991}, {-13936051, 9581034}};

std::vector<float> boundary_block() {
  std::vector<float> x(64 * 32, 0.0f);
  for (std::size_t t = 0; t < 64; ++t) {
    const auto& pair = near_boundaries[t % std::size(near_boundaries)];
    x[t * 32 + 3] = std::ldexp(static_cast<float>(pair[0]), -20);
    x[t * 32 + 4] = std::ldexp(static_cast<float>(pair[1]), -20);
  }
  return x;
}

}  // namespace

TEST_CASE("4.5 bits per element at widths that 32 divides") {
  for (const int width : {64, 128, 256}) {
    CHECK(bits_per_element(Q4_0::record(Side::key, width), width) == 4.5);
    CHECK(bits_per_element(Q4_0::record(Side::value, width), width) == 4.5);
  }
}

TEST_CASE("decoded numbers are those of the block format, bit for bit") {
  Random random(1);
  for (const int width : {64, 80, 96}) {
    for (int round = 0; round < 20; ++round) {
      auto x = random.normals(static_cast<std::size_t>(64 * width), round % 2 == 0 ? 1.0f : 100.0f);
      for (std::size_t i = 0; i < x.size(); i += 41) x[i] = 0.0f;
      if (round % 4 == 3) {
        for (float& v : x) v = to_float(to_f16(v));
      }
      for (const Side side : {Side::key, Side::value}) {
        CodecBlock<Q4_0Plain> block(side, width);
        block.encode_in_basis(x);
        REQUIRE(block.decode_in_basis() == by_blocks(q4_0_block, x, width));
      }
    }
  }
}

TEST_CASE("of two numbers of the largest magnitude the first decides the sign") {
  for (const float first : {1.0f, -1.0f}) {
    std::vector<float> x(64 * 64, 0.25f);
    for (std::size_t g = 0; g < x.size(); g += 32) {
      x[g + 5] = first;
      x[g + 6] = -first;
    }
    const auto decoded = round_trip<Q4_0Plain>(Side::value, 64, x);
    CHECK(decoded == by_blocks(q4_0_block, x, 64));
    CHECK(decoded[5] == first);
    CHECK(decoded[6] == -0.875f * first);
  }
}

TEST_CASE("codes do not depend on fused multiply-adds") {
  const auto x = boundary_block();
  CodecBlock<Q4_0Plain> block(Side::key, 32);
  block.encode_in_basis(x);
  CHECK(block.decode_in_basis() == by_blocks(q4_0_block, x, 32));
#if TERSE_X86_DISPATCH
  if (!__builtin_cpu_supports("fma")) TERSE_SKIP("no fused multiply-add");
  CodecBlock<Q4_0Plain> fused(Side::key, 32);
  encode_with_fma(fused.context(), x.data(), fused.bytes().data());
  CHECK(fused.bytes() == block.bytes());
#endif
}

TEST_CASE("the error on Gaussian data stays below its ceiling") {
  constexpr double gaussian_ceiling = 0.0076;
  CHECK(gaussian_error<Q4_0>(Side::key, 64, 20) < gaussian_ceiling);
  CHECK(gaussian_error<Q4_0>(Side::key, 64, 20) > gaussian_ceiling / 2);
}

TEST_CASE("the cache's basis is the Hadamard matrix of 64 channels") {
  static_assert(HasBasis<Q4_0> && !HasBasis<Q4_0Plain>);
  std::vector<float> x(128, 0.0f);
  x[3] = 8.0f;
  to_basis<Q4_0>({Side::key, 128}, x.data());
  for (std::size_t c = 0; c < 128; ++c) CHECK(std::fabs(x[c]) == (c < 64 ? 1.0f : 0.0f));
}

TEST_CASE("finite input stays finite") {
  for (const int width : {20, 64, 80}) {
    CHECK(stays_finite<Q4_0>(Side::key, width));
    CHECK(stays_finite<Q4_0>(Side::value, width));
  }
}

TEST_CASE("stored bytes do not change") {
  CHECK(golden_hash<Q4_0>(Side::key, 64) == 0xd84c8dec056dfe05ull);
  CHECK(golden_hash<Q4_0>(Side::value, 80) == 0x40e412dff14b3af6ull);
  CodecBlock<Q4_0> keys(Side::key, 64);
  keys.encode(golden_values(64));
  const std::size_t scales = Q4_0::record(Side::key, 64).sections[1].offset_bytes;
  CHECK(keys.byte(0) == 134);
  CHECK(keys.byte(1) == 132);
  CHECK(keys.byte(scales - 1) == 196);
  CHECK(keys.byte(scales) == 252);
  CHECK(keys.byte(scales + 1) == 181);
}
