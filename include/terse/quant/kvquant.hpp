/// KVQuant's type of codes: KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache
/// Quantization (arXiv 2401.18079, sections 3.1 to 3.5). Levels that are not evenly spaced (nuq),
/// one codebook for all vectors, keys per channel, values per token, and 1 % of the numbers apart,
/// exact in 16 bits.
///
///   vector  its numbers but outliers, within [offset - range, offset + range]
///   u = (x - offset) / range        code = the level nearest to u
///   decoded  level(code) * range + offset, or the outlier
///
/// Departs from the paper in what makes it a baseline of the same type, not the same method:
///
/// - Ranges, offsets and codebooks are found in each block and stored with it, where the paper has
///   them from calibration but for the ranges of values: 16 bits twice for 64 numbers, half a bit
///   a number at head dimension 64, and a codebook of 2^bits fp16 levels a block. Weights of the
///   codebook are squared ranges, without the Fisher information, which takes gradients.
/// - A vector is that of one head and block: a value's paper vector spans all heads.
/// - Outliers are the 1 % of a block's numbers that lie farthest from their vector's mean, in
///   standard deviations of the vector, with room for exactly so many in the record.
/// - Codes are found from ranges and offsets as they are stored, and from the levels before they
/// are
///   rounded to fp16 and, at 2 bits, before they are stretched.
/// - Keys are stored after RoPE: before it is where a codec cannot reach.
/// - Keys wait exactly for a block of 64 to be full. The first token is exact, as in the paper, but
///   the first block's ranges see it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"
#include "terse/policy/tail.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"
#include "terse/quant/tile_scales.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct NonUniformSpec {
  int bits = 3;
  int outliers_per_thousand = 10;  ///< of a block's numbers, stored apart; 0 to 20
  bool keeps_spread = false;  ///< the paper's Q-Norm: levels decode to the numbers' mean and spread
  int rounds = 10;            ///< of weighted k-means
};

/// The codec. Sections: codes by code_place, levels, ranges and offsets `[vector]` (channels of
/// keys, tokens of values) in fp16, outliers by rising index.
template <NonUniformSpec S>
struct NonUniformGrid {
  static_assert(S.bits >= 2 && S.bits <= 4, "terse::NonUniformGrid: bits must be 2, 3 or 4.");
  static_assert(S.outliers_per_thousand >= 0 && S.outliers_per_thousand <= 20,
                "terse::NonUniformGrid: outliers_per_thousand must lie within 0 to 20.");
  static_assert(S.rounds >= 0, "terse::NonUniformGrid: rounds is negative.");

  static constexpr Granularity granularity = Granularity::per_channel;
  /// Widest stream: encoding keeps parameters of every vector in arrays of this many.
  static constexpr int max_width = max_tile_width;
  static constexpr int num_levels = 1 << S.bits;

  [[nodiscard]] static Status supports(Side, int width) noexcept {
    if (width > max_width) {
      return error(StatusCode::unsupported, "terse::NonUniformGrid: width is limited to 256",
                   width);
    }
    return {};
  }

  /// A number stored apart, at token * width + channel.
  struct Outlier {
    std::uint16_t index;
    F16 value;
  };
  static_assert(sizeof(Outlier) == 4);

  TERSE_HOST_DEVICE static constexpr int num_outliers(int width) noexcept {
    return ceil_div(block_tokens * width * S.outliers_per_thousand, 1000);
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    const auto vectors = static_cast<std::size_t>(axis(side, width).vectors);
    Record r;
    r.add(codes_bytes<S.bits>(side, width));
    r.add(num_levels * sizeof(F16));
    r.add(vectors * sizeof(F16));
    r.add(vectors * sizeof(F16));
    r.add(static_cast<std::size_t>(num_outliers(width)) * sizeof(Outlier));
    return r;
  }

  TERSE_HOST_DEVICE static void encode_block(const CodecContext& context, const float* x,
                                             std::byte* block) noexcept {
    const Record r = record(context.side, context.width);
    Block b{x, axis(context.side, context.width)};
    find_outliers(context.width, &b);
    store_outliers(context.width, b, block + r.sections[4].offset_bytes);
    for (int i = 0; i < b.axis.vectors; ++i) {
      find_range(i, &b);
      detail::store_half(block + r.sections[2].offset_bytes, i, to_f16_saturating(b.range[i]));
      detail::store_half(block + r.sections[3].offset_bytes, i, to_f16_saturating(b.offset[i]));
    }
    float levels[num_levels];
    for (int l = 0; l < num_levels; ++l) {
      levels[l] = static_cast<float>(2 * l + 1 - num_levels) / static_cast<float>(num_levels);
    }
    for (int round = 0; round < S.rounds; ++round) move_levels(b, levels);
    for (int i = 0; i < b.axis.vectors; ++i) {
      for (int k = 0; k < b.axis.length; ++k) {
        const bool is_key = context.side == Side::key;
        store_code<S.bits>(
            block, code_place<S.bits>(context.side, context.width, is_key ? k : i, is_key ? i : k),
            nearest(levels, b.unit(i, k)));
      }
    }
    if constexpr (S.keeps_spread) keep_spread(b, levels);
    for (int l = 0; l < num_levels; ++l) {
      detail::store_half(block + r.sections[1].offset_bytes, l, to_f16_saturating(levels[l]));
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    const Record r = record(context.side, context.width);
    const int index = token * context.width + channel;
    const std::byte* outliers = block + r.sections[4].offset_bytes;
    int first = 0;
    for (int count = num_outliers(context.width); count > 0;) {
      const int half = count / 2;
      const Outlier o = load_outlier(outliers, first + half);
      if (o.index == index) return to_float(o.value);
      first = o.index < index ? first + half + 1 : first;
      count = o.index < index ? count - half - 1 : half;
    }
    const unsigned code =
        load_code<S.bits>(block, code_place<S.bits>(context.side, context.width, token, channel));
    const int vector = context.side == Side::key ? channel : token;
    return fused_multiply_add(
        detail::load_half(block + r.sections[1].offset_bytes, static_cast<int>(code)),
        detail::load_half(block + r.sections[2].offset_bytes, vector),
        detail::load_half(block + r.sections[3].offset_bytes, vector));
  }

 private:
  TERSE_HOST_DEVICE static constexpr TileAxis axis(Side side, int width) noexcept {
    return side == Side::key ? TileAxis::channels(width) : TileAxis::tokens(width);
  }

  /// A block's numbers, and what is found of them.
  struct Block {
    const float* x;
    TileAxis axis;
    std::uint64_t outliers[max_width] = {};  ///< bits of numbers: 64 of each run, see is_outlier
    float range[max_width] = {};             ///< as stored
    float inverse[max_width] = {};           ///< of range; 0 where that is 0
    float offset[max_width] = {};            ///< as stored

    [[nodiscard]] TERSE_HOST_DEVICE bool is_outlier(std::size_t index) const noexcept {
      return (outliers[index / 64] >> index % 64 & 1) != 0;
    }
    /// Number `k` of vector `i`, within what fp16 holds.
    [[nodiscard]] TERSE_HOST_DEVICE float number(int i, int k) const noexcept {
      return clamp(x[axis.at(i, k)], -f16_max, f16_max);
    }
    [[nodiscard]] TERSE_HOST_DEVICE float unit(int i, int k) const noexcept {
      return rounded_product(number(i, k) - offset[i], inverse[i]);
    }
  };

  /// Marks the numbers that lie farthest from their vectors' means; of equal ones the first.
  TERSE_HOST_DEVICE static void find_outliers(int width, Block* b) noexcept {
    struct Candidate {
      float distance;
      std::size_t index;
    };
    constexpr int most = num_outliers(max_width) > 0 ? num_outliers(max_width) : 1;
    Candidate farthest[most];
    const int room = num_outliers(width);
    int found = 0;
    for (int i = 0; i < b->axis.vectors; ++i) {
      float sum = 0.0f, squares = 0.0f;
      for (int k = 0; k < b->axis.length; ++k) sum += b->number(i, k);
      const float mean = rounded_quotient(sum, static_cast<float>(b->axis.length));
      for (int k = 0; k < b->axis.length; ++k) {
        const float off = b->number(i, k) - mean;
        squares += rounded_product(off, off);
      }
      for (int k = 0; k < b->axis.length; ++k) {
        const float off = b->number(i, k) - mean;
        const Candidate c{
            squares == 0.0f ? 0.0f : rounded_quotient(rounded_product(off, off), squares),
            b->axis.at(i, k)};
        const auto precedes = [&](const Candidate& other) {
          return c.distance > other.distance ||
                 (c.distance == other.distance && c.index < other.index);
        };
        if (found == room && (room == 0 || !precedes(farthest[room - 1]))) continue;
        int place = found == room ? room - 1 : found++;
        for (; place > 0 && precedes(farthest[place - 1]); --place) {
          farthest[place] = farthest[place - 1];
        }
        farthest[place] = c;
      }
    }
    for (int i = 0; i < found; ++i) {
      b->outliers[farthest[i].index / 64] |= std::uint64_t{1} << farthest[i].index % 64;
    }
  }

  TERSE_HOST_DEVICE static void store_outliers(int width, const Block& b,
                                               std::byte* section) noexcept {
    int place = 0;
    for (int index = 0; index < block_tokens * width; ++index) {
      const auto at = static_cast<std::size_t>(index);
      if (!b.is_outlier(at)) continue;
      const Outlier o{static_cast<std::uint16_t>(index), to_f16_saturating(b.x[at])};
      std::memcpy(section + static_cast<std::size_t>(place) * sizeof o, &o, sizeof o);
      ++place;
    }
  }
  TERSE_HOST_DEVICE static Outlier load_outlier(const std::byte* section, int place) noexcept {
    Outlier o;
    std::memcpy(&o, section + static_cast<std::size_t>(place) * sizeof o, sizeof o);
    return o;
  }

  /// Range and offset of vector `i`, rounded as they are stored.
  TERSE_HOST_DEVICE static void find_range(int i, Block* b) noexcept {
    float low = 0.0f, high = 0.0f;
    bool any = false;
    for (int k = 0; k < b->axis.length; ++k) {
      if (b->is_outlier(b->axis.at(i, k))) continue;
      const float v = b->number(i, k);
      low = any ? smaller(v, low) : v;
      high = any ? larger(v, high) : v;
      any = true;
    }
    b->offset[i] = to_float(to_f16_saturating((low + high) * 0.5f + 0.0f));
    b->range[i] = to_float(to_f16_saturating((high - low) * 0.5f));
    b->inverse[i] = b->range[i] == 0.0f ? 0.0f : rounded_reciprocal(b->range[i]);
  }

  TERSE_HOST_DEVICE static unsigned nearest(const float* levels, float u) noexcept {
    unsigned code = 0;
    for (int l = 1; l < num_levels; ++l) {
      code += u > (levels[l - 1] + levels[l]) * 0.5f ? 1u : 0u;
    }
    return code;
  }

  /// Calls `visit(vector, sums [num_levels], counts [num_levels])` for each vector that has a
  /// range, with what of its numbers is nearest to each level.
  template <class Visit>
  TERSE_HOST_DEVICE static void for_each_vector(const Block& b, const float* levels,
                                                Visit visit) noexcept {
    for (int i = 0; i < b.axis.vectors; ++i) {
      if (b.range[i] == 0.0f) continue;
      float sums[num_levels] = {}, counts[num_levels] = {};
      for (int k = 0; k < b.axis.length; ++k) {
        if (b.is_outlier(b.axis.at(i, k))) continue;
        const float u = b.unit(i, k);
        const unsigned code = nearest(levels, u);
        sums[code] += u;
        counts[code] += 1.0f;
      }
      visit(i, sums, counts);
    }
  }

  /// A round of k-means, of numbers weighted by their vectors' squared ranges.
  TERSE_HOST_DEVICE static void move_levels(const Block& b, float* levels) noexcept {
    float sums[num_levels] = {}, weights[num_levels] = {};
    for_each_vector(b, levels, [&](int i, const float* sum, const float* count) {
      const float weight = rounded_product(b.range[i], b.range[i]);
      for (int l = 0; l < num_levels; ++l) {
        sums[l] = fused_multiply_add(weight, sum[l], sums[l]);
        weights[l] = fused_multiply_add(weight, count[l], weights[l]);
      }
    });
    for (int l = 0; l < num_levels; ++l) {
      if (weights[l] > 0.0f) levels[l] = rounded_quotient(sums[l], weights[l]);
    }
  }

  /// Moves and stretches the levels so that decoded numbers, in units of their ranges, have the
  /// mean and the standard deviation of the numbers.
  TERSE_HOST_DEVICE static void keep_spread(const Block& b, float* levels) noexcept {
    float counts[num_levels] = {}, sum = 0.0f, total = 0.0f;
    for_each_vector(b, levels, [&](int, const float* part, const float* count) {
      for (int l = 0; l < num_levels; ++l) {
        sum += part[l];
        counts[l] += count[l];
        total += count[l];
      }
    });
    if (total == 0.0f) return;
    const float mean = rounded_quotient(sum, total);
    float level_sum = 0.0f;
    for (int l = 0; l < num_levels; ++l) level_sum += rounded_product(counts[l], levels[l]);
    const float level_mean = rounded_quotient(level_sum, total);
    float squares = 0.0f, level_squares = 0.0f;
    for (int i = 0; i < b.axis.vectors; ++i) {
      for (int k = 0; k < b.axis.length && b.range[i] != 0.0f; ++k) {
        if (b.is_outlier(b.axis.at(i, k))) continue;
        const float off = b.unit(i, k) - mean;
        squares += rounded_product(off, off);
      }
    }
    for (int l = 0; l < num_levels; ++l) {
      const float off = levels[l] - level_mean;
      level_squares += rounded_product(counts[l], rounded_product(off, off));
    }
    if (level_squares == 0.0f) return;
    const float stretch = rounded_root(rounded_quotient(squares, level_squares));
    for (int l = 0; l < num_levels; ++l) {
      levels[l] = fused_multiply_add(levels[l] - level_mean, stretch, mean);
    }
  }
};

struct KVQuantSpec {
  int bits = 3;
  int outliers_per_thousand = 10;
  TailSpec tail{.min_tokens = 1, .sink_tokens = 1};
};

/// The policy: the same codec on either side, levels with the numbers' spread at 2 bits.
template <KVQuantSpec S>
struct KVQuant {
  static_assert(S.bits >= 2 && S.bits <= 4, "terse::KVQuant: bits must be 2, 3 or 4.");
  static_assert(S.outliers_per_thousand >= 0 && S.outliers_per_thousand <= 20,
                "terse::KVQuant: outliers_per_thousand must lie within 0 to 20.");
  using key_codec = NonUniformGrid<NonUniformSpec{.bits = S.bits,
                                                  .outliers_per_thousand = S.outliers_per_thousand,
                                                  .keeps_spread = S.bits == 2}>;
  using value_codec = key_codec;
  static constexpr TailSpec tail = S.tail;
};

using KVQuant2 = KVQuant<KVQuantSpec{.bits = 2}>;
using KVQuant3 = KVQuant<KVQuantSpec{.bits = 3}>;
static_assert(KVQuant2::key_codec::record(Side::key, 64).sections[4].bytes == 41 * 4);
static_assert(KVQuant2::key_codec::record(Side::key, 64).bytes * 8 == 64 * 64 * 3);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
