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

namespace {

constexpr int widths[] = {1,  3,   4,   16,  17,  20,  32,  48,  64,  70,  80,
                          96, 100, 112, 128, 144, 160, 192, 240, 255, 256, 576};

template <int Bits>
bool is_injective(Side side, int width) {
  std::vector<int> used(codes_bytes<Bits>(side, width));
  const auto take = [&](std::size_t byte, unsigned shift, unsigned bits) {
    const int mask = ((1 << bits) - 1) << shift;
    if (byte >= used.size() || shift + bits > 8 || (used[byte] & mask) != 0) return false;
    used[byte] |= mask;
    return true;
  };
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < width; ++c) {
      const CodePlace p = code_place<Bits>(side, width, t, c);
      if (!take(p.byte, p.shift, p.lower_bits)) return false;
      if (p.lower_bits == Bits) continue;
      if (Bits != 3 || !take(p.upper_byte, p.upper_shift, Bits - p.lower_bits)) return false;
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
      // Of 1- and 3-bit values, a last tile of 16 channels without a partner takes 2 and 4 bits a
      // code.
      const bool is_lone =
          terse::tiles_per_bundle(Bits) == 2 && side == Side::value && (width + 15) / 16 % 2 == 1;
      const int step = side == Side::value ? 16 : terse::codes_per_lane(Bits);
      if (width % step == 0 && !is_lone) {
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

/// Whether bundle_code names, for every place of every bundle, the code that code_place puts there.
template <int Bits>
bool bundles_agree(Side side, int width) {
  int named = 0;
  std::size_t words = 0;
  for (int b = 0; b < terse::code_bundles<Bits>(side, width); ++b) {
    const terse::BundleWords own = terse::bundle_words<Bits>(side, width, b);
    words += static_cast<std::size_t>(own.count);
    for (int i = 0; i < terse::codes_per_bundle(Bits); ++i) {
      const terse::BundleCode code = terse::bundle_code<Bits>(side, width, b, i);
      if (code.channel >= width) continue;
      if (code.token < 0 || code.token >= block_tokens || code.channel < 0) return false;
      const CodePlace place = code_place<Bits>(side, width, code.token, code.channel);
      const auto byte = [&](int vector, unsigned shift) {
        return static_cast<std::size_t>(own.first + vector * 16) * 4 + shift / 8;
      };
      const terse::CodeField& f = code.field;
      if (f.vector >= own.count || f.upper_vector >= own.count) return false;
      if (place.byte != byte(f.vector, f.shift) || place.shift != f.shift % 8) return false;
      if (place.lower_bits != f.lower_bits) return false;
      ++named;
      if (f.lower_bits == Bits) continue;
      if (place.upper_byte != byte(f.upper_vector, f.upper_shift)) return false;
      if (place.upper_shift != f.upper_shift % 8) return false;
    }
  }
  return named == block_tokens * width && words * 4 == codes_bytes<Bits>(side, width);
}
}  // namespace

TEST_CASE("the codes of a bundle are those whose places it holds") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : widths) {
      CAPTURE(width, side == Side::key);
      CHECK(bundles_agree<1>(side, width));
      CHECK(bundles_agree<2>(side, width));
      CHECK(bundles_agree<3>(side, width));
      CHECK(bundles_agree<4>(side, width));
      CHECK(bundles_agree<8>(side, width));
    }
  }
}

TEST_CASE("every code of a block has a place of its own") {
  check_places<1>();
  check_places<2>();
  check_places<3>();
  check_places<4>();
  check_places<8>();
}

TEST_CASE("codes come back as stored, whatever was there before") {
  for (const Side side : {Side::key, Side::value}) {
    for (const int width : {20, 64, 80, 144}) {
      check_store_and_load<1>(side, width);
      check_store_and_load<2>(side, width);
      check_store_and_load<3>(side, width);
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

TEST_CASE("a 64-byte vector of 1-bit codes holds four fields of a tile and four of the next") {
  for (int i = 0; i < 8; ++i) {
    for (int n = 0; n < 4; ++n) {
      CAPTURE(i, n);
      // Values: channels 32 and on, tokens 8 ... 11 of each 16.
      const CodePlace place =
          code_place<1>(Side::value, 64, i % 4 * 16 + 8 + n, 32 + i / 4 * 16 + 7);
      CHECK(place.byte == static_cast<std::size_t>((4 + 2) * 64 + 4 * 7 + neighbour_bytes[n]));
      CHECK(place.shift == static_cast<unsigned>(i));
    }
  }
}

TEST_CASE("three vectors of 3-bit codes hold four fields of a tile and four of the next") {
  // Byte, shift and bits of the eight fields; where bits are missing, those of the rest.
  struct Field {
    std::size_t vector;
    unsigned shift, bits;
    std::size_t upper_vector;
    unsigned upper_shift;
  };
  const Field fields[] = {{0, 2, 3, 0, 0}, {0, 5, 3, 0, 0}, {1, 1, 3, 1, 0}, {1, 4, 3, 1, 0},
                          {0, 0, 2, 1, 7}, {2, 0, 3, 2, 0}, {2, 3, 3, 2, 0}, {1, 0, 1, 2, 6}};
  for (int i = 0; i < 8; ++i) {
    for (int n = 0; n < 4; ++n) {
      CAPTURE(i, n);
      const Field& f = fields[i];
      const auto check = [&](const CodePlace& place, std::size_t first, int lane) {
        const auto byte = static_cast<std::size_t>(4 * lane + neighbour_bytes[n]);
        CHECK(place.byte == (first + f.vector) * 64 + byte);
        CHECK(place.shift == f.shift);
        CHECK(place.lower_bits == f.bits);
        if (f.bits == 3) return;
        CHECK(place.upper_byte == (first + f.upper_vector) * 64 + byte);
        CHECK(place.upper_shift == f.upper_shift);
      };
      // Keys of width 80, five runs of 16 channels: tokens 32 and on, third run.
      check(code_place<3>(Side::key, 80, 32 + i / 4 * 16 + 5, 32 + i % 4 * 4 + n), 3 * 5 + 3 * 2,
            5);
      // Values: channels 32 and on, tokens 8 ... 11 of each 16.
      check(code_place<3>(Side::value, 64, i % 4 * 16 + 8 + n, 32 + i / 4 * 16 + 7), 3 * 4 + 3 * 2,
            7);
    }
  }
  // The last 16 channels of 80 have no partner and two vectors.
  CHECK(code_place<3>(Side::value, 80, 8, 64).byte == (2 * 12 + 2 * 2) * 64);
  CHECK(code_place<3>(Side::value, 80, 8 + 48, 64).byte == (2 * 12 + 2 * 2 + 1) * 64);
}

TEST_CASE("channels are padded to the vectors' lanes") {
  CHECK(codes_bytes<8>(Side::key, 20) == 64 * 20);
  CHECK(codes_bytes<8>(Side::key, 21) == 64 * 24);
  CHECK(codes_bytes<4>(Side::key, 20) == 64 * 24 / 2);
  CHECK(codes_bytes<2>(Side::key, 20) == 64 * 32 / 4);
  CHECK(codes_bytes<2>(Side::value, 20) == 64 * 32 / 4);
  CHECK(codes_bytes<4>(Side::value, 64) == 64 * 64 / 2);
  CHECK(codes_bytes<1>(Side::value, 64) == 64 * 64 / 8);
  CHECK(codes_bytes<1>(Side::value, 80) == 64 * (64 + 16 * 2) / 8);
  CHECK(codes_bytes<3>(Side::key, 20) == 64 * 32 * 3 / 8);
  CHECK(codes_bytes<3>(Side::key, 80) == 64 * 80 * 3 / 8);
  CHECK(codes_bytes<3>(Side::value, 64) == 64 * 64 * 3 / 8);
  CHECK(codes_bytes<3>(Side::value, 80) == 64 * (64 * 3 + 16 * 4) / 8);
}
