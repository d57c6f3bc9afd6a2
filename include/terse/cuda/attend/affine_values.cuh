/// Sums of affine-coded values of one block, on tensor cores, without unpacking a number.
///
/// Codes are the A operand as in affine_keys.cuh, rows = channels. Per-token scales multiply the
/// probabilities once per channel group; minima (or -centre times the scales) and a row of ones,
/// for the softmax denominator, are one more A tile.
///
/// A lane reads four neighbouring channels of a token word with one 16-byte load, so row g of
/// m-tile 2p + m is channel 32p + 4g + 2m, and row g + 8 the one after it. Of 3-bit codes, whose
/// words hold those of channels 16 apart, it reads two neighbours: row g is channel 32p + 16m + 2g.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/code_fields.cuh"
#include "terse/cuda/attend/element_fields.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Codec, int Width, int Tiles>
struct AffineValues {
  static constexpr AffineFormat format = Codec::affine_format;
  static constexpr int bits = format.bits;
  using Codes = typename FieldsOf<Codec>::type;
  static constexpr bool reads_next = ReadsNextChannels<Codes>;
  /// Factors lie in the place of scales, a byte for 16 channels of a token.
  static constexpr bool reads_factors = ReadsFactors<Codes>;
  static constexpr int fields = codes_per_lane(bits) / 4;
  /// Tiles of 16 channels whose codes share words, at other positions.
  static constexpr int shared = tiles_per_bundle(bits);
  static constexpr int groups = affine_groups(format, Width);
  static constexpr int group_channels = format.group == 0 ? Width : format.group;
  static constexpr int pairs = ceil_div(Width, 32);
  static constexpr int row_tiles = 2 * pairs;
  static constexpr int tile_bytes = runs_per_lane(bits, Side::value, Width) * 64;
  /// Of a lane's words of a bundle.
  static constexpr int run_bytes = Codes::words * 64;
  static constexpr bool supported = Width % 16 == 0 &&
                                    format.granularity == Granularity::per_token && groups <= 7 &&
                                    (groups == 1 || group_channels % 32 == 0);
  /// Probabilities of neighbouring 16-token steps come as {step lo, next lo, step hi, next hi}.
  static constexpr bool steps_interleaved = true;

  struct Sums {
    float codes[Tiles][row_tiles][4] = {};
    float even[Tiles][4] = {}, odd[Tiles][4] = {};  // minima of groups, then the denominator
  };

  __device__ static constexpr int channel(int row_tile, int half, int g) {
    const int pair = 32 * (row_tile / 2), m = row_tile % 2;
    return shared == 2 ? pair + 16 * m + 2 * g + half : pair + 4 * g + 2 * m + half;
  }

  __device__ __forceinline__ static void scale(Sums& sums, int n, float c0, float c1) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      sums.codes[n][r][0] *= c0;
      sums.codes[n][r][1] *= c1;
      sums.codes[n][r][2] *= c0;
      sums.codes[n][r][3] *= c1;
    }
    sums.even[n][0] *= c0;
    sums.even[n][1] *= c1;
    sums.odd[n][2] *= c0;
    sums.odd[n][3] *= c1;
  }

  /// Where the lane's numbers begin in a block.
  struct Places {
    std::uint32_t codes, scales;
    std::uint32_t corrections, in_block;  ///< in_block: all ones where corrections lie in the block
    std::uint32_t next_codes;  ///< those of the next lane's channels, where they are read too
  };
  /// `ones`: shared address of 128 bytes of fp16 ones.
  __device__ __forceinline__ static Places places(std::uint32_t ones) {
    const Lane lane = this_lane();
    constexpr Record record = Codec::record(Side::value, Width);
    constexpr auto scales = static_cast<std::uint32_t>(record.sections[1].offset_bytes);
    constexpr auto minima =
        static_cast<std::uint32_t>(record.sections[format.has_min ? 2 : 1].offset_bytes);
    const int codes = shared == 2 ? lane.g * 8 + lane.t * run_bytes
                                  : lane.g / 4 * tile_bytes + lane.g % 4 * 16 + lane.t * run_bytes;
    // Factors are no halves, and need no correction: the ones stand in for it, times -centre = 0.
    const bool in_block = !reads_factors && lane.g < groups;
    const auto four_tokens = static_cast<std::uint32_t>(lane.t) * 8u;
    Places x;
    x.codes = pinned(static_cast<std::uint32_t>(codes));
    x.scales =
        pinned(reads_factors ? scales + static_cast<std::uint32_t>(lane.g / 4 * 64 + lane.t * 4)
                             : scales + four_tokens);
    x.corrections = pinned(four_tokens +
                           (in_block ? minima + static_cast<std::uint32_t>(lane.g) * 128u : ones));
    x.in_block = pinned(in_block ? ~0u : 0u);
    if constexpr (reads_next) {
      const int step = shared == 2       ? (lane.g == 7 ? -56 : 8)
                       : lane.g % 4 == 3 ? tile_bytes - 48
                                         : 16;
      x.next_codes = pinned(static_cast<std::uint32_t>(codes + step));
    }
    return x;
  }

  /// sums += p * values. `p [tile, pair of steps]` as load_transposed gave them.
  __device__ __forceinline__ static void add(std::uint32_t block, const Places& places,
                                             const std::uint32_t (&p)[Tiles][2][4], Sums& sums) {
    const std::uint32_t corrections = (block & places.in_block) + places.corrections;
    const std::uint32_t scales = block + places.scales, codes = block + places.codes;
    // [step, sharing tile, {lo, hi}], times the fields' powers of two
    std::uint32_t weighted[Tiles][4][shared][2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint2 x = load_shared_8(corrections + static_cast<unsigned>(pair) * 64u);
      const uint2 y = load_shared_8(corrections + static_cast<unsigned>(pair) * 64u + 32u);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        multiply_add(sums.even[n], x.x, x.y, y.x, y.y, p[n][pair][0], p[n][pair][1]);
        multiply_add(sums.odd[n], x.x, x.y, y.x, y.y, p[n][pair][2], p[n][pair][3]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int step = 2 * pair + i;
#pragma unroll
          for (int m = 0; m < shared; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              // 2^-position: the field's codes come out that much too large.
              const int position = Codes::position(field_of<bits>(m, step % fields), half);
              const std::uint32_t half_bits = static_cast<std::uint32_t>(15 - position) << 10;
              const std::uint32_t x = p[n][pair][2 * half + i];
              weighted[n][step][m][half] =
                  position == 0 ? x : multiply_half2(x, half_bits | half_bits << 16);
            }
          }
        }
      }
    }
    std::uint32_t b[Tiles][4][shared][2];
#pragma unroll
    for (int pair = 0; pair < pairs; ++pair) {
      if (pair * 32 % group_channels == 0) {
        const int group = pair * 32 / group_channels;
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          uint2 scale_pair{};
          if constexpr (!reads_factors) {
            scale_pair = load_shared_8(scales + static_cast<unsigned>(group * 128 + step * 32));
          }
#pragma unroll
          for (int n = 0; n < Tiles; ++n) {
#pragma unroll
            for (int m = 0; m < shared; ++m) {
              const std::uint32_t(&p_of)[2] = weighted[n][step][m];
              b[n][step][m][0] = reads_factors ? p_of[0] : multiply_half2(p_of[0], scale_pair.x);
              b[n][step][m][1] = reads_factors ? p_of[1] : multiply_half2(p_of[1], scale_pair.y);
            }
          }
        }
      }
      if constexpr (reads_next && shared == 2) {
        multiply_paired_run(codes, block + places.next_codes, pair, b, sums);
      } else if constexpr (reads_next) {
        multiply_run(codes, block + places.next_codes, pair, b, sums);
      } else if constexpr (shared == 2) {
        multiply_pair(codes, pair, b, sums);
      } else {
        multiply_channels(codes, scales, pair, b, sums);
      }
    }
  }

  /// Numerators of (column, channel) in value units, and the denominators of the lane's columns.
  __device__ static void finish(const Sums& sums, int n, float (&out)[row_tiles][4],
                                float (&denominator)[2]) {
    const Lane lane = this_lane();
    const float factor = format.has_min ? 1.0f : -format.centre;
    float correction[groups][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x = sums.even[n][i] + sums.odd[n][2 + i];
#pragma unroll
      for (int group = 0; group < groups; ++group) {
        correction[group][i] = factor * __shfl_sync(~0u, x, group * 4 + lane.t);
      }
      denominator[i] = __shfl_sync(~0u, x, groups * 4 + lane.t);
    }
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        constexpr int last = groups - 1;
        const int group = r / 2 * 32 / group_channels;
        out[r][i] = __fmaf_rn(sums.codes[n][r][i], Codes::unit,
                              correction[group < last ? group : last][i & 1]);
      }
    }
  }

 private:
  /// Channels 32 * pair and on; tokens of all four steps. `factors_at`: where the lane's factors
  /// are, if they are read.
  __device__ __forceinline__ static void multiply_channels(std::uint32_t codes_at,
                                                           std::uint32_t factors_at, int pair,
                                                           const std::uint32_t (&b)[Tiles][4][1][2],
                                                           Sums& sums) {
    std::uint32_t channels = codes_at + static_cast<std::uint32_t>(2 * pair * tile_bytes);
    // Lanes beyond the width read the last tile in place of their own.
    if (Width % 32 != 0 && pair == pairs - 1) {
      channels -= static_cast<std::uint32_t>(this_lane().g / 4 * tile_bytes);
    }
#pragma unroll
    for (int word = 0; word < 4 / fields; ++word) {
      const uint4 x = load_shared_16(channels + static_cast<unsigned>(word) * 256u);
      const std::uint32_t w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int field = 0; field < fields; ++field) {
        const int step = word * fields + field;
        uint2 factors{};
        if constexpr (reads_factors) {
          factors = element_factors(
              load_shared_4(factors_at + static_cast<unsigned>(2 * pair * 64 + step * 16)));
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          Codes codes[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            codes[i].set(0, w[2 * m + i]);
            if constexpr (reads_factors) codes[i].set_factors(factors.x, factors.y);
          }
          multiply_rows(codes, field, 2 * pair + m, step, 0, b, sums);
        }
      }
    }
  }

  /// The same from codes that depend on those of the next two channels, of which the lane's last
  /// two channels have theirs at `next_at`.
  __device__ __forceinline__ static void multiply_run(std::uint32_t codes_at, std::uint32_t next_at,
                                                      int pair,
                                                      const std::uint32_t (&b)[Tiles][4][1][2],
                                                      Sums& sums) {
    const Lane lane = this_lane();
    const bool is_last = pair == pairs - 1, is_half = Width % 32 != 0 && is_last;
    auto step = static_cast<std::uint32_t>(2 * pair * tile_bytes);
    if (is_half) step -= static_cast<std::uint32_t>(lane.g / 4 * tile_bytes);
    const uint4 x = load_shared_16(codes_at + step);
    // The last channels have none behind them, nor the record words.
    const bool is_end = is_last && (is_half ? lane.g % 4 == 3 : lane.g == 7);
    uint2 y = load_shared_8((is_end ? codes_at : next_at) + step);
    if (is_end) y = {0, 0};
    const std::uint32_t w[6] = {ordered(x.x), ordered(x.y), ordered(x.z),
                                ordered(x.w), ordered(y.x), ordered(y.y)};
#pragma unroll
    for (int first = 0; first < 2; ++first) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        Codes codes[2];
        codes[0].set(w[2 * m], w[2 * m + 1], w[2 * m + 2]);
        codes[1].set(w[2 * m + 1], w[2 * m + 2], w[2 * m + 3]);
#pragma unroll
        for (int field = first; field < fields; field += 2) {
          multiply_rows(codes, field, 2 * pair + m, field, 0, b, sums);
        }
      }
    }
  }

  /// The same from words that hold two channels 16 apart. At `next_at` the last lane finds the
  /// first one's words: their upper tile is that of the channels behind its lower one, and the
  /// lower tile of the next words that behind its upper one.
  __device__ __forceinline__ static void multiply_paired_run(
      std::uint32_t codes_at, std::uint32_t next_at, int pair,
      const std::uint32_t (&b)[Tiles][4][shared][2], Sums& sums) {
    const Lane lane = this_lane();
    const bool is_last = pair == pairs - 1, is_half = Width % 32 != 0 && is_last;
    const auto words_from = [&](std::uint32_t at, int of_pair, std::uint32_t(&first)[Codes::words],
                                std::uint32_t(&second)[Codes::words]) {
      const int vectors = vectors_per_run(bits, Side::value, Width, 2 * of_pair);
      at +=
          static_cast<std::uint32_t>(bundle_vector(bits, Side::value, Width, 2 * of_pair, 0) * 64);
      at -= static_cast<std::uint32_t>(lane.t * (run_bytes - vectors * 64));
#pragma unroll
      for (int v = 0; v < Codes::words; ++v) {
        const uint2 x =
            v < vectors ? load_shared_8(at + static_cast<unsigned>(v) * 64u) : uint2{0, 0};
        first[v] = ordered(x.x);
        second[v] = ordered(x.y);
      }
    };
    std::uint32_t own[2][Codes::words], next[2][Codes::words], behind[2][Codes::words] = {};
    words_from(codes_at, pair, own[0], own[1]);
    words_from(next_at, pair, next[0], next[1]);
    if (!is_last) words_from(next_at, pair + 1, behind[0], behind[1]);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (32 * pair + 16 * m >= Width) continue;
      using Word = typename Codes::Word;
      const auto next_of = [&](int i) -> Word {
        const Word across = m == 1    ? Codes::word_of(behind[i], 0)
                            : is_half ? Word{}
                                      : Codes::word_of(next[i], 1);
        return Codes::choose(lane.g == 7, across, Codes::word_of(next[i], m));
      };
      const Word w[4] = {Codes::word_of(own[0], m), Codes::word_of(own[1], m), next_of(0),
                         next_of(1)};
      Codes codes[2];
      codes[0].set(w[0], w[1], w[2]);
      codes[1].set(w[1], w[2], w[3]);
#pragma unroll
      for (int i = 0; i < fields; ++i) {
        const int field = i / 2 + i % 2 * 2;
        multiply_rows(codes, field, 2 * pair + m, field, m, b, sums);
      }
    }
  }

  /// The same from words that hold two channels 16 apart. A last tile without a partner has no
  /// third word.
  __device__ __forceinline__ static void multiply_pair(
      std::uint32_t codes_at, int pair, const std::uint32_t (&b)[Tiles][4][shared][2], Sums& sums) {
    const int vectors = vectors_per_run(bits, Side::value, Width, 2 * pair);
    std::uint32_t channels =
        codes_at +
        static_cast<std::uint32_t>(bundle_vector(bits, Side::value, Width, 2 * pair, 0) * 64);
    if (vectors * 64 != run_bytes) {
      channels -= static_cast<std::uint32_t>(this_lane().t * (run_bytes - vectors * 64));
    }
    Codes codes[2];
#pragma unroll
    for (int v = 0; v < Codes::words; ++v) {
      if (v >= vectors) continue;
      const uint2 x = load_shared_8(channels + static_cast<unsigned>(v) * 64u);
      codes[0].set(v, x.x);
      codes[1].set(v, x.y);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (32 * pair + 16 * m >= Width) continue;
#pragma unroll
      for (int i = 0; i < fields; ++i) {
        const int step = Codes::field_step == 2 ? i / 2 + i % 2 * 2 : i;
        multiply_rows(codes, field_of<bits>(m, step), 2 * pair + m, step, m, b, sums);
      }
    }
  }

  /// Sums of a row tile += a field of two channels' words times the probabilities of a step for
  /// tile `m` of those that share words.
  __device__ __forceinline__ static void multiply_rows(
      const Codes (&codes)[2], int field, int row_tile, int step, int m,
      const std::uint32_t (&b)[Tiles][4][shared][2], Sums& sums) {
    const std::uint32_t a[4] = {codes[0].pair(field, 0), codes[1].pair(field, 0),
                                codes[0].pair(field, 1), codes[1].pair(field, 1)};
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      multiply_add(sums.codes[n][row_tile], a[0], a[1], a[2], a[3], b[n][step][m][0],
                   b[n][step][m][1]);
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
