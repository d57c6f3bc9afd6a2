// Packed codes: every code has a place of its own, in the documented order.
#include "terse/quant/codes.hpp"

#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/random.hpp"

using terse::block_tokens;
using terse::code_place;
using terse::CodePlace;
using terse::codes_bytes;
using terse::load_code;
using terse::Side;
using terse::store_code;
using terse::stored_channels;

namespace {

constexpr int widths[] = {1,  3,   4,   16,  17,  20,  32,  48,  64,  70,  80,
                          96, 100, 112, 128, 144, 160, 192, 240, 255, 256, 576};

template <int Bits>
bool is_injective(Side side, int width) {
  std::vector<int> used(codes_bytes<Bits>(side, width));
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < width; ++c) {
      const CodePlace place = code_place<Bits>(side, width, t, c);
      if (place.byte >= used.size() || place.shift % Bits != 0 || place.shift >= 8) return false;
      const int mask = ((1 << Bits) - 1) << place.shift;
      if ((used[place.byte] & mask) != 0) return false;
      used[place.byte] |= mask;
    }
  }
  return true;
}

template <int Bits>
void check_places() {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : widths) {
      CAPTURE(Bits, width, side == Side::key);
      CHECK(is_injective<Bits>(side, width));
      const auto used_bits = static_cast<std::size_t>(block_tokens * width * Bits);
      if (width == stored_channels(Bits, side, width)) {
        // Injective and of equal size: a bijection onto the bits of the section.
        CHECK(codes_bytes<Bits>(side, width) * 8 == used_bits);
      } else {
        CHECK(codes_bytes<Bits>(side, width) * 8 > used_bits);
      }
    }
  }
}

template <int Bits>
void check_store_and_load(Side side, int width) {
  std::vector<std::byte> bytes(codes_bytes<Bits>(side, width), std::byte{0xa5});
  terse::tests::Random random(Bits);
  std::vector<unsigned> codes(static_cast<std::size_t>(block_tokens * width));
  for (unsigned& code : codes) code = static_cast<unsigned>(random.below(1 << Bits));
  const auto code_at = [&](int t, int c) -> unsigned& {
    return codes[static_cast<std::size_t>(t * width + c)];
  };
  for (int c = 0; c < width; ++c) {
    for (int t = 0; t < block_tokens; ++t) {
      store_code<Bits>(bytes.data(), code_place<Bits>(side, width, t, c), code_at(t, c));
    }
  }
  bool same = true;
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < width; ++c) {
      same = same &&
             load_code<Bits>(bytes.data(), code_place<Bits>(side, width, t, c)) == code_at(t, c);
    }
  }
  CHECK(same);
}

/// Whether word_code names, for every place of every word, the code that code_place puts there.
template <int Bits>
bool words_agree(Side side, int width) {
  const int words = terse::code_words<Bits>(side, width);
  if (static_cast<std::size_t>(words) * 4 != codes_bytes<Bits>(side, width)) return false;
  int named = 0;
  for (int w = 0; w < words; ++w) {
    for (int i = 0; i < terse::codes_per_lane(Bits); ++i) {
      const terse::WordCode code = terse::word_code<Bits>(side, width, w, i);
      if (code.channel >= width) continue;
      if (code.token < 0 || code.token >= block_tokens || code.channel < 0) return false;
      const CodePlace place = code_place<Bits>(side, width, code.token, code.channel);
      const auto byte = static_cast<std::size_t>(w) * 4 + code.shift / 8;
      if (place.byte != byte || place.shift != code.shift % 8) return false;
      ++named;
    }
  }
  return named == block_tokens * width;
}

}  // namespace

TEST_CASE("the codes of a word are those whose places it holds") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : widths) {
      CAPTURE(width, side == Side::key);
      CHECK(words_agree<2>(side, width));
      CHECK(words_agree<4>(side, width));
      CHECK(words_agree<8>(side, width));
    }
  }
}

TEST_CASE("every code of a block has a place of its own") {
  check_places<2>();
  check_places<4>();
  check_places<8>();
}

TEST_CASE("codes come back as stored, whatever was there before") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : {20, 64, 80, 144}) {
      check_store_and_load<2>(side, width);
      check_store_and_load<4>(side, width);
      check_store_and_load<8>(side, width);
    }
  }
}

// Four neighbours lie in bytes 0, 2, 1, 3, so that the first two are 16 bits apart.
constexpr int neighbour_bytes[] = {0, 2, 1, 3};

TEST_CASE("a 64-byte vector of keys holds 16 tokens by 4 channels, fields 4 channels apart") {
  for (int t = 0; t < 16; ++t) {
    for (int c = 0; c < 4; ++c) {
      for (unsigned field = 0; field < 4; ++field) {
        const CodePlace place =
            code_place<2>(Side::key, 128, 32 + t, 16 + 4 * static_cast<int>(field) + c);
        CHECK(place.byte ==
              static_cast<std::size_t>((2 * 8 + 1) * 64 + 4 * t + neighbour_bytes[c]));
        CHECK(place.shift == 2 * field);
      }
    }
  }
  // Width 80 is ten lanes of eight 4-bit codes, or twenty of four 8-bit ones.
  CHECK(code_place<4>(Side::key, 80, 16, 0).byte == 10 * 64);
  CHECK(code_place<4>(Side::key, 80, 0, 12).byte == 64);
  CHECK(code_place<4>(Side::key, 80, 0, 12).shift == 4);
  CHECK(code_place<8>(Side::key, 80, 16, 0).byte == 20 * 64);
}

TEST_CASE("a 64-byte vector of values holds 16 channels by 4 tokens, fields 16 tokens apart") {
  for (int c = 0; c < 16; ++c) {
    for (int t = 0; t < 4; ++t) {
      for (unsigned field = 0; field < 2; ++field) {
        const CodePlace place =
            code_place<4>(Side::value, 64, 32 + 16 * static_cast<int>(field) + 8 + t, 16 + c);
        CHECK(place.byte ==
              static_cast<std::size_t>((8 + 4 + 2) * 64 + 4 * c + neighbour_bytes[t]));
        CHECK(place.shift == 4 * field);
      }
    }
  }
  // All tokens of a channel: 4 vectors of 2-bit codes, 16 of 8-bit ones.
  CHECK(code_place<2>(Side::value, 64, 63, 0).byte == 3 * 64 + 3);
  CHECK(code_place<2>(Side::value, 64, 63, 0).shift == 6);
  CHECK(code_place<8>(Side::value, 64, 63, 0).byte == 15 * 64 + 3);
}

TEST_CASE("stored channels are padded to the vectors' lanes") {
  CHECK(stored_channels(8, Side::key, 20) == 20);
  CHECK(stored_channels(8, Side::key, 21) == 24);
  CHECK(stored_channels(4, Side::key, 20) == 24);
  CHECK(stored_channels(2, Side::key, 20) == 32);
  CHECK(stored_channels(2, Side::value, 20) == 32);
  CHECK(stored_channels(4, Side::value, 64) == 64);
  CHECK(codes_bytes<4>(Side::key, 20) == 64 * 24 / 2);
  CHECK(codes_bytes<2>(Side::value, 20) == 64 * 32 / 4);
}
