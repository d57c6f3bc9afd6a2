/// Weighted sums straight from packed value records with AVX-512 VNNI.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx512_codes.hpp"
#include "terse/cpu/avx512_fixed_point.hpp"
#include "terse/cpu/portable.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// Probabilities of 64 tokens times the token scales of one channel group, in digits.
struct FoldedTokens {
  alignas(64) float words[affine_rows][block_tokens];
  CentreShare centres[affine_rows];
  alignas(16) float offsets[affine_rows];  ///< sum of probability times group minimum
};

/// Scales that hold for all channel groups: the largest product of a probability with its token's
/// largest scale. One reduction serves all of them.
template <Digits D, int R>
TERSE_TARGET_AVX512 void measure_probabilities(const AffineParts& parts, const float* probabilities,
                                               int groups, FixedScales* fixed) noexcept {
  __m512 peak[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) peak[r] = _mm512_setzero_ps();
  TERSE_UNROLL
  for (int v = 0; v < 4; ++v) {
    __m512 scale = load_halves(parts.scales, v * 16);
    for (int g = 1; g < groups; ++g) {
      scale = max_magnitude(scale, load_halves(parts.scales, g * block_tokens + v * 16));
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 p = _mm512_loadu_ps(probabilities + r * block_tokens + v * 16);
      peak[r] = max_magnitude(peak[r], _mm512_mul_ps(p, scale));
    }
  }
  set_scales<D>(max_each(peak[0], peak[1], peak[2], peak[3]), fixed);
}

/// Without minima the codes have a centre, with them they count from the minimum.
template <Digits D, int R, bool HasMin>
TERSE_TARGET_AVX512 void fold_probabilities(const AffineFormat& f, const AffineParts& parts,
                                            const float* probabilities, int group,
                                            const FixedScales& fixed,
                                            FoldedTokens* folded) noexcept {
  __m512 inverse[R], offset[affine_rows];
  __m512i total[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) inverse[r] = _mm512_set1_ps(fixed.inverse[r]);
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) {
    offset[r] = _mm512_setzero_ps();
    total[r] = _mm512_setzero_si512();
  }
  // 32 tokens at a time: in shared digits the second 16 are the partners of the first.
  TERSE_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    __m512 scale[2], minimum[2];
    TERSE_UNROLL
    for (int v = 0; v < 2; ++v) {
      const int at = group * block_tokens + (2 * pair + v) * 16;
      scale[v] = load_halves(parts.scales, at);
      minimum[v] = _mm512_setzero_ps();
      if constexpr (HasMin) minimum[v] = load_halves(parts.minima, at);
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* p = probabilities + r * block_tokens + pair * 32;
      float* words = folded->words[r] + pair * 32;
      __m512 x[2];
      TERSE_UNROLL
      for (int v = 0; v < 2; ++v) {
        const __m512 part = _mm512_loadu_ps(p + v * 16);
        offset[r] = _mm512_fmadd_ps(part, minimum[v], offset[r]);  // NaN where p is not finite
        x[v] = _mm512_mul_ps(part, scale[v]);
      }
      if constexpr (D == Digits::shared) {
        const SharedDigits digits = split_shared(x[0], x[1], inverse[r], &total[r]);
        _mm512_store_si512(words, digits.first);
        _mm512_store_si512(words + 16, digits.partner);
      } else {
        _mm512_store_si512(words, split_three(x[0], inverse[r], &total[r]));
        _mm512_store_si512(words + 16, split_three(x[1], inverse[r], &total[r]));
      }
    }
  }
  _mm_store_ps(folded->offsets, sum_each(offset[0], offset[1], offset[2], offset[3]));
  if constexpr (!HasMin) {
    store_shares<D>(f.centre, total, block_tokens, R, folded->centres);
    for (int r = 0; r < R; ++r) folded->offsets[r] -= folded->centres[r].rest * fixed.scale[r];
  }
}

/// R rows x NT tiles of 16 channels, the first of them tile `First` of its bundles, whose runs have
/// `vectors` vectors each; `lanes` selects channels of a lone tile.
template <int Bits, Digits D, int R, bool HasMin, int NT, int First>
TERSE_TARGET_AVX512 void value_tiles(const std::byte* codes, int vectors,
                                     const FoldedTokens& folded, const FixedScales& fixed,
                                     int width, float* accumulators, __mmask16 lanes,
                                     std::intptr_t ahead) noexcept {
  constexpr int fields = codes_per_lane(Bits) / 4;
  constexpr int runs = runs_per_lane(Bits, Side::value, 0);
  constexpr int tiles = tiles_per_bundle(Bits);
  if constexpr (tiles == 1) vectors = words_per_bundle(Bits);
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1));
  __m512i sum[NT][R][3];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int n = 0; n < NT; ++n) {
      sum[n][r][0] = sum[n][r][1] = sum[n][r][2] = _mm512_setzero_si512();
    }
  }
  // 16 tokens are one field of four vectors.
  const float* digits = folded.words[0];
  for (int run = 0; run < runs; run += 4) {
    TERSE_UNROLL
    for (int field = 0; field < fields; ++field) {
      TERSE_ROLL
      for (int quad = 0; quad < 4; ++quad) {
        const std::byte* at = codes + (run + quad) * vectors * 64;
        __m512i x[NT];
        TERSE_UNROLL
        for (int n = 0; n < NT; ++n) {
          const std::byte* bundle = at + n / tiles * runs * 64;
          if (D == Digits::shared && field == 0) {
            const __m512i whole = _mm512_loadu_si512(bundle);
            TERSE_UNROLL
            for (int r = 0; r < R; ++r) dot_word(sum[n][r][0], whole, digits + r * block_tokens);
          }
          x[n] = stored_codes<Bits>(bundle, field_of<Bits>(First + n, field));
          if (Bits != 8) x[n] = _mm512_and_si512(x[n], mask);
        }
        if (field == 0) {
          TERSE_UNROLL
          for (int n = 0; n < NT; n += tiles) {
            for (int v = 0; v < vectors; ++v) prefetch(at + (n * runs + v) * 64, ahead);
          }
        }
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          TERSE_UNROLL
          for (int i = D == Digits::shared ? 1 : 0; i < 3; ++i) {
            const float* word = digits + r * block_tokens + i;
            if constexpr (NT == 1) {
              dot_word(sum[0][r][i], x[0], word);
            } else {
              dot_word(sum[0][r][i], x[0], sum[1][r][i], x[1], word);
            }
          }
        }
        digits += 4;
      }
    }
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 scale = _mm512_set1_ps(fixed.scale[r]);
    const __m512 offset = _mm512_set1_ps(folded.offsets[r]);
    TERSE_UNROLL
    for (int n = 0; n < NT; ++n) {
      float* out = accumulators + static_cast<std::ptrdiff_t>(r) * width + n * 16;
      if constexpr (!HasMin) {
        // Here rather than at the start, where it would wait for the fold's last reduction.
        sum[n][r][1] = _mm512_add_epi32(sum[n][r][1], _mm512_set1_epi32(folded.centres[r].start));
      }
      const __m512 dot = combine(sum[n][r][0], sum[n][r][1], sum[n][r][2]);
      const __m512 block = _mm512_fmadd_ps(dot, scale, offset);
      if constexpr (NT > 1) {
        _mm512_storeu_ps(out, _mm512_add_ps(block, _mm512_loadu_ps(out)));
      } else {
        _mm512_mask_storeu_ps(out, lanes, _mm512_add_ps(block, _mm512_maskz_loadu_ps(lanes, out)));
      }
    }
  }
}

template <int Bits, Digits D, int R, bool HasMin>
TERSE_TARGET_AVX512 void values_rows(const AffineFormat& f, int width, const AffineParts& parts,
                                     const float* probabilities, float* accumulators,
                                     std::intptr_t ahead) noexcept {
  const int group_channels = f.group == 0 || f.group > width ? width : f.group;
  FixedScales fixed;
  measure_probabilities<D, R>(parts, probabilities, ceil_div(width, group_channels), &fixed);
  // The next group is folded before this one's products, which hide its reductions.
  FoldedTokens folded[2];
  fold_probabilities<D, R, HasMin>(f, parts, probabilities, 0, fixed, &folded[0]);
  for (int begin = 0, group = 0; begin < width; begin += group_channels, ++group) {
    const int end = begin + group_channels < width ? begin + group_channels : width;
    if (end < width) {
      fold_probabilities<D, R, HasMin>(f, parts, probabilities, group + 1, fixed,
                                       &folded[(group + 1) % 2]);
    }
    const FoldedTokens& own = folded[group % 2];
    for (int c = begin; c < end;) {
      const int tile = c / 16, first = tile % tiles_per_bundle(Bits);
      const int vectors = vectors_per_run(Bits, Side::value, width, tile - first);
      const std::byte* codes = parts.codes + bundle_vector(Bits, Side::value, width, tile, 0) * 64;
      const __mmask16 lanes = first_lanes(end - c);
      auto* tiles = value_tiles<Bits, D, R, HasMin, 2, 0>;
      const bool is_pair = first == 0 && c + 32 <= end;
      if (!is_pair) tiles = value_tiles<Bits, D, R, HasMin, 1, 0>;
      if (first != 0) tiles = value_tiles<Bits, D, R, HasMin, 1, tiles_per_bundle(Bits) - 1>;
      tiles(codes, vectors, own, fixed, width, accumulators + c, lanes, ahead);
      c += is_pair ? 32 : 16;
    }
  }
}

template <int Bits, Digits D, bool HasMin>
TERSE_TARGET_AVX512 void values_bits(const AffineFormat& f, int width, const AffineParts& parts,
                                     const float* probabilities, int rows, float* accumulators,
                                     std::intptr_t ahead) noexcept {
  for (int row = 0; row < rows; row += affine_rows) {
    const float* p = probabilities + static_cast<std::ptrdiff_t>(row) * block_tokens;
    float* out = accumulators + static_cast<std::ptrdiff_t>(row) * width;
    const std::intptr_t hint = row == 0 ? ahead : 0;
    switch (rows - row) {
      case 1:
        values_rows<Bits, D, 1, HasMin>(f, width, parts, p, out, hint);
        break;
      case 2:
        values_rows<Bits, D, 2, HasMin>(f, width, parts, p, out, hint);
        break;
      case 3:
        values_rows<Bits, D, 3, HasMin>(f, width, parts, p, out, hint);
        break;
      default:
        values_rows<Bits, D, 4, HasMin>(f, width, parts, p, out, hint);
        break;
    }
  }
}

/// Channels of a scale group from which on shared digits pay: below, splitting takes longer.
inline constexpr int shared_digit_channels = 128;

TERSE_TARGET_AVX512 inline void values_affine(const AffineFormat& f, int width,
                                              const std::byte* record, const float* probabilities,
                                              int rows, float* accumulators,
                                              const std::byte* next) {
  if (f.granularity != Granularity::per_token || !covers_affine(f, Side::value, width)) {
    return portable::values_affine(f, width, record, probabilities, rows, accumulators, next);
  }
  const AffineParts parts(f, Side::value, width, record);
  const std::intptr_t ahead = distance(record, next);
  if (ahead != 0) prefetch_parameters(parts, ahead);
  const auto run = [&](auto* values) {
    values(f, width, parts, probabilities, rows, accumulators, ahead);
  };
  constexpr Digits three = Digits::three;
  switch (f.bits) {
    case 1:
      return run(values_bits<1, three, false>);
    case 2:
      return run(f.has_min ? values_bits<2, three, true> : values_bits<2, three, false>);
    case 3:
      return run(f.has_min ? values_bits<3, three, true> : values_bits<3, three, false>);
    case 4:
      if (f.has_min) return run(values_bits<4, three, true>);
      return run(width >= shared_digit_channels &&
                         (f.group == 0 || f.group >= shared_digit_channels)
                     ? values_bits<4, Digits::shared, false>
                     : values_bits<4, three, false>);
    default:
      return run(f.has_min ? values_bits<8, three, true> : values_bits<8, three, false>);
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
