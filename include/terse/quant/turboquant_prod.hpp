/// TurboQuant_prod: keys whose products with queries are unbiased. TurboQuant_mse with a bit less,
/// and of what it leaves one sign a channel (QJL). Keys have bits + 32 / width bits.
///
/// TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate (arXiv 2504.19874),
/// section 3.2, algorithm 2; the signs are those of QJL: 1-Bit Quantized JL Transform for KV Cache
/// Quantization with Zero Overhead (arXiv 2406.03482). With y = R x in TurboQuant's basis, w
/// channels, and a random matrix S, [w, w]:
///
///   u_c = the level, of 2^(bits - 1), nearest to y_c / f         f = |y| / sqrt(w)
///   z = sign(S r)                                                r = y - f u
///   decoded  f u + g S^T z                                       g = |r| sqrt(pi / 2) / w
///
/// Over Gaussian S, <q, decoded> has the mean <q, y>, and for |q| = 1 the variance |r|^2 pi / (2
/// w). Values, which meet no query, are TurboQuant's of as many bits, with its corrected norm.
///
/// Departs from the paper: elements of S are signs, from a hash of row and channel, not Gaussian,
/// so that 64 products of a column with z are one count of bits and S takes no memory. As sums of
/// few numbers are not quite normal, products gain 0.2 to 0.4 % at 64 channels, 0.1 % at 256. R is
/// TurboQuant's, levels are those of N(0, 1), f and g are stored in fp16, and r is what remains
/// under the stored f. `SketchRows::orthogonal` is an addition (QJL's code makes its rows
/// orthogonal too): the variance is |r|^2 (pi / 2 - 1) / w.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"
#include "terse/quant/hadamard.hpp"
#include "terse/quant/normal_levels.hpp"
#include "terse/quant/turboquant.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// The matrix of a sketch, whose elements are 1 and -1.
enum class SketchRows : std::uint8_t {
  independent,  ///< each sign from a hash of its own
  orthogonal,   ///< a Hadamard matrix with signs of channels; widths that are powers of two
};

/// Which elements of column `channel` are -1 in rows 64 * word ... 64 * word + 63, lowest bit
/// first.
template <SketchRows Rows>
TERSE_HOST_DEVICE std::uint64_t sketch_column(int channel, int word) noexcept {
  // SplitMix64's finaliser of a place; the orthogonal sketch has channels as places.
  const auto hash = [](int place) {
    auto h = (static_cast<std::uint64_t>(place) + 1u) * 0x9e3779b97f4a7c15ull;
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ h >> 27) * 0x94d049bb133111ebull;
    return h ^ h >> 31;
  };
  if constexpr (Rows == SketchRows::independent) {
    return hash(channel * (max_stream_width / 64) + word);
  } else {
    // Element (row, channel) of a Hadamard matrix is -1 where row & channel has an odd count.
    constexpr std::uint64_t odd[] = {0xaaaaaaaaaaaaaaaaull, 0xccccccccccccccccull,
                                     0xf0f0f0f0f0f0f0f0ull, 0xff00ff00ff00ff00ull,
                                     0xffff0000ffff0000ull, 0xffffffff00000000ull};
    std::uint64_t column = 0;
    for (int bit = 0; bit < 6; ++bit) column ^= (channel >> bit & 1) != 0 ? odd[bit] : 0u;
    const auto above = static_cast<std::uint64_t>(channel >> 6 & word);
    const bool turns = ((static_cast<std::uint64_t>(count_ones(above)) ^ hash(channel)) & 1u) != 0;
    return turns ? ~column : column;
  }
}

struct SketchedLevelsSpec {
  int bits = 3;  ///< of a number: levels of bits - 1, and a sign
  SketchRows rows = SketchRows::independent;
};

/// The codec, in whichever basis. Sections: codes of levels by code_place, f `[token]` in fp16,
/// signs `[token, row]`, bit row % 8 of byte row / 8, set where S r is negative, g `[token]` in
/// fp16.
template <SketchedLevelsSpec S>
struct SketchedLevels {
  static_assert(S.bits >= 2 && S.bits <= 4, "terse::SketchedLevels: bits must be 2, 3 or 4.");

  static constexpr Granularity granularity = Granularity::per_token;
  static constexpr bool is_unbiased = true;
  static constexpr int level_bits = S.bits - 1;

  [[nodiscard]] static Status supports(Side, int width) noexcept {
    if (S.rows == SketchRows::orthogonal && (width & (width - 1)) != 0) {
      return error(StatusCode::unsupported,
                   "terse::SketchedLevels: orthogonal rows need a width that is a power of two; "
                   "use SketchRows::independent",
                   width);
    }
    return {};
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    Record r;
    r.add(codes_bytes<level_bits>(side, width));
    r.add(block_tokens * sizeof(F16));
    r.add(block_tokens * static_cast<std::size_t>(sign_bytes(width)));
    r.add(block_tokens * sizeof(F16));
    return r;
  }

  TERSE_HOST_DEVICE static constexpr int tokens_at_once(Side side) noexcept {
    return code_tokens_at_once<level_bits>(side);
  }
  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    const int width = context.width;
    const Record r = record(context.side, width);
    const float squares = sum_of_squares(width, [&](int c) { return x[c]; });
    const float size = rounded_root(rounded_quotient(squares, static_cast<float>(width)));
    const F16 stored = to_f16_saturating(size);
    detail::store_half(block + r.sections[1].offset_bytes, token, stored);
    const bool is_zero = stored.bits == 0;
    const float inverse = is_zero ? 0.0f : rounded_quotient(1.0f, size), scale = to_float(stored);
    for (int c = 0; c < width; ++c) {
      store_code<level_bits>(block, place(context, token, c),
                             NormalLevels<level_bits>::nearest(rounded_product(x[c], inverse)));
    }
    const auto remainder = [&](int c) {
      return is_zero ? 0.0f : fused_multiply_add(-level(context, block, token, c), scale, x[c]);
    };
    const float length = rounded_root(sum_of_squares(width, remainder));
    detail::store_half(block + r.sections[3].offset_bytes, token,
                       to_f16_saturating(rounded_quotient(rounded_product(length, root_half_pi),
                                                          static_cast<float>(width))));
    for (int word = 0; word * 64 < width; ++word) {
      float sums[64] = {};
      for (int c = 0; c < width; ++c) {
        const float v = remainder(c);
        const std::uint64_t column = sketch_column<S.rows>(c, word);
        for (int row = 0; row < 64; ++row) sums[row] += (column >> row & 1u) != 0 ? -v : v;
      }
      std::uint64_t signs = 0;
      for (int row = 0; row < rows_of(width, word); ++row) {
        signs |= static_cast<std::uint64_t>(sums[row] < 0.0f ? 1u : 0u) << row;
      }
      std::memcpy(token_signs(r, width, token, block) + word * 8, &signs, word_bytes(width, word));
    }
  }

  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    const Record r = record(context.side, context.width);
    for (int c = 0; c < context.width; ++c) {
      store_code<level_bits>(to, place(context, to_token, c),
                             load_code<level_bits>(from, place(context, from_token, c)));
    }
    for (const int section : {1, 3}) {
      const std::size_t offset = r.sections[section].offset_bytes;
      std::memcpy(to + offset + static_cast<std::size_t>(to_token) * sizeof(F16),
                  from + offset + static_cast<std::size_t>(from_token) * sizeof(F16), sizeof(F16));
    }
    std::memcpy(token_signs(r, context.width, to_token, to),
                token_signs(r, context.width, from_token, from),
                static_cast<std::size_t>(sign_bytes(context.width)));
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    const int width = context.width;
    const Record r = record(context.side, width);
    const std::byte* signs = token_signs(r, width, token, block);
    int sum = 0;  // of the column's products with z
    for (int word = 0; word * 64 < width; ++word) {
      const int rows = rows_of(width, word);
      std::uint64_t negative = 0;
      if (rows == 64) {
        std::memcpy(&negative, signs + word * 8, 8);
      } else {
        std::memcpy(&negative, signs + word * 8, word_bytes(width, word));
      }
      negative ^= sketch_column<S.rows>(channel, word);
      sum += rows - 2 * count_ones(negative << (64 - rows));
    }
    // The second product is exact: 11 bits of g, at most 13 of the sum.
    return rounded_product(level(context, block, token, channel),
                           detail::load_half(block + r.sections[1].offset_bytes, token)) +
           detail::load_half(block + r.sections[3].offset_bytes, token) * static_cast<float>(sum);
  }

 private:
  static constexpr float root_half_pi = 1.25331414f;

  TERSE_HOST_DEVICE static constexpr CodePlace place(const CodecContext& context, int token,
                                                     int channel) noexcept {
    return code_place<level_bits>(context.side, context.width, token, channel);
  }
  TERSE_HOST_DEVICE static float level(const CodecContext& context, const std::byte* block,
                                       int token, int channel) noexcept {
    return NormalLevels<level_bits>::level(
        load_code<level_bits>(block, place(context, token, channel)));
  }

  TERSE_HOST_DEVICE static constexpr int sign_bytes(int width) noexcept {
    return ceil_div(width, 8);
  }
  /// Rows whose signs lie in word `word` of a token, and the bytes that they take.
  TERSE_HOST_DEVICE static constexpr int rows_of(int width, int word) noexcept {
    return width - word * 64 < 64 ? width - word * 64 : 64;
  }
  TERSE_HOST_DEVICE static constexpr std::size_t word_bytes(int width, int word) noexcept {
    return static_cast<std::size_t>(sign_bytes(rows_of(width, word)));
  }
  template <class Byte>
  TERSE_HOST_DEVICE static Byte* token_signs(const Record& r, int width, int token,
                                             Byte* block) noexcept {
    return block + r.sections[2].offset_bytes + std::ptrdiff_t{token} * sign_bytes(width);
  }
};

struct TurboQuantProdSpec {
  int bits = 3;  ///< of a number: 2, 3 or 4; of a key one of them is the sketch's
  SketchRows rows = SketchRows::independent;
};

template <TurboQuantProdSpec S>
struct TurboQuantProd {
  static_assert(S.bits >= 2 && S.bits <= 4, "terse::TurboQuantProd: bits must be 2, 3 or 4.");
  using key_codec = InBasis<SketchedLevels<SketchedLevelsSpec{.bits = S.bits, .rows = S.rows}>,
                            SignedHadamardBasis<256>>;
  using value_codec = TurboQuant<TurboQuantSpec{.bits = S.bits}>;
};

using TurboQuantProd2 = TurboQuantProd<TurboQuantProdSpec{.bits = 2}>;
using TurboQuantProd3 = TurboQuantProd<TurboQuantProdSpec{.bits = 3}>;
using TurboQuantProd4 = TurboQuantProd<TurboQuantProdSpec{.bits = 4}>;
static_assert(TurboQuantProd3::key_codec::record(Side::key, 64).bytes * 8 == 64 * (64 * 3 + 32));
static_assert(TurboQuantProd2::key_codec::record(Side::key, 128).bytes * 8 == 64 * (128 * 2 + 32));

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
