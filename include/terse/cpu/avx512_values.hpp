/// Weighted sums straight from packed value records with AVX-512 VNNI.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx512_fixed_point.hpp"
#include "terse/cpu/portable.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx512 {
TERSE_BEGIN_AVX512

/// Probabilities of 64 tokens times the token scales of one channel group, split into bytes.
struct FoldedTokens {
  alignas(64) float words[affine_rows][block_tokens];
  FixedScales fixed;
  CentreShare centres[affine_rows];
  alignas(16) float offsets[affine_rows];  ///< sum of probability times group middle
};

template <int R>
TERSE_TARGET_AVX512 void fold_probabilities(const ReadFormat& f, const AffineParts& parts,
                                            const float* probabilities, int group,
                                            FoldedTokens* folded) noexcept {
  __m512 x[affine_rows][4], peak[affine_rows], offset[affine_rows];
  __m512i total[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) {
    peak[r] = offset[r] = _mm512_setzero_ps();
    total[r] = _mm512_setzero_si512();
  }
  TERSE_UNROLL
  for (int v = 0; v < 4; ++v) {
    const __m512 scale = load_halves(parts.scales, group * block_tokens + v * 16);
    __m512 middle = _mm512_setzero_ps();
    if (f.has_min) {
      middle = middles(f, scale, load_halves(parts.minima, group * block_tokens + v * 16));
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 p = _mm512_loadu_ps(probabilities + r * block_tokens + v * 16);
      x[r][v] = _mm512_mul_ps(p, scale);
      peak[r] = max_magnitude(peak[r], x[r][v]);
      offset[r] = _mm512_fmadd_ps(p, middle, offset[r]);  // NaN where p is not finite
    }
  }
  set_scales(max_each(peak[0], peak[1], peak[2], peak[3]), &folded->fixed);
  _mm_store_ps(folded->offsets, sum_each(offset[0], offset[1], offset[2], offset[3]));
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 inverse = _mm512_set1_ps(folded->fixed.inverse[r]);
    TERSE_UNROLL
    for (int v = 0; v < 4; ++v) {
      _mm512_store_si512(folded->words[r] + v * 16, split_bytes(x[r][v], inverse, &total[r]));
    }
  }
  store_shares(f, total, block_tokens, R, folded->centres);
}

/// R rows x NT tiles of 16 channels; `lanes` selects channels of a lone tile.
template <int Bits, int R, int NT>
TERSE_TARGET_AVX512 void value_tiles(const std::byte* codes, const FoldedTokens& folded, int width,
                                     float* accumulators, __mmask16 lanes,
                                     std::intptr_t ahead) noexcept {
  constexpr int fields = 8 / Bits;
  constexpr int vectors = block_tokens / (4 * fields);
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1));
  __m512i sum[NT][R][3];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int n = 0; n < NT; ++n) {
      sum[n][r][0] = sum[n][r][2] = _mm512_setzero_si512();
      sum[n][r][1] = _mm512_set1_epi32(folded.centres[r].start);
    }
  }
  const float* digits = folded.words[0];
  for (int v = 0; v < vectors; ++v) {
    __m512i stored[NT];
    TERSE_UNROLL
    for (int n = 0; n < NT; ++n) {
      const std::byte* at = codes + (n * vectors + v) * 64;
      stored[n] = _mm512_loadu_si512(at);
      prefetch(at, ahead);
    }
    TERSE_UNROLL
    for (int field = 0; field < fields; ++field) {
      __m512i x[NT];
      TERSE_UNROLL
      for (int n = 0; n < NT; ++n) {
        x[n] = stored[n];
        if (field != 0) x[n] = _mm512_srli_epi32(x[n], static_cast<unsigned>(field * Bits));
        if (Bits != 8) x[n] = _mm512_and_si512(x[n], mask);
      }
      TERSE_UNROLL
      for (int r = 0; r < R; ++r) {
        TERSE_UNROLL
        for (int i = 0; i < 3; ++i) {
          const float* word = digits + r * block_tokens + field * 4 + i;
          TERSE_UNROLL
          for (int n = 0; n < NT; ++n) dot_word(sum[n][r][i], x[n], word);
        }
      }
    }
    digits += fields * 4;
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    const float unit = folded.fixed.scale[r];
    const __m512 scale = _mm512_set1_ps(unit);
    const __m512 offset = _mm512_set1_ps(folded.offsets[r] - folded.centres[r].rest * unit);
    TERSE_UNROLL
    for (int n = 0; n < NT; ++n) {
      float* out = accumulators + static_cast<std::ptrdiff_t>(r) * width + n * 16;
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

template <int Bits, int R>
TERSE_TARGET_AVX512 void values_rows(const ReadFormat& f, int width, const AffineParts& parts,
                                     const float* probabilities, float* accumulators,
                                     std::intptr_t ahead) noexcept {
  constexpr int tile_bytes = 16 * block_tokens * Bits / 8;
  const int group_channels = f.group == 0 || f.group > width ? width : f.group;
  // The next group is folded before this one's products, which hide its reductions.
  FoldedTokens folded[2];
  fold_probabilities<R>(f, parts, probabilities, 0, &folded[0]);
  for (int begin = 0, group = 0; begin < width; begin += group_channels, ++group) {
    const int end = begin + group_channels < width ? begin + group_channels : width;
    if (end < width) {
      fold_probabilities<R>(f, parts, probabilities, group + 1, &folded[(group + 1) % 2]);
    }
    const FoldedTokens& own = folded[group % 2];
    int c = begin;
    for (; c + 32 <= end; c += 32) {
      value_tiles<Bits, R, 2>(parts.codes + c / 16 * tile_bytes, own, width, accumulators + c, 0,
                              ahead);
    }
    for (; c < end; c += 16) {
      value_tiles<Bits, R, 1>(parts.codes + c / 16 * tile_bytes, own, width, accumulators + c,
                              first_lanes(end - c), ahead);
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX512 void values_bits(const ReadFormat& f, int width, const AffineParts& parts,
                                     const float* probabilities, int rows, float* accumulators,
                                     std::intptr_t ahead) noexcept {
  for (int row = 0; row < rows; row += affine_rows) {
    const float* p = probabilities + static_cast<std::ptrdiff_t>(row) * block_tokens;
    float* out = accumulators + static_cast<std::ptrdiff_t>(row) * width;
    const std::intptr_t hint = row == 0 ? ahead : 0;
    switch (rows - row) {
      case 1:
        values_rows<Bits, 1>(f, width, parts, p, out, hint);
        break;
      case 2:
        values_rows<Bits, 2>(f, width, parts, p, out, hint);
        break;
      case 3:
        values_rows<Bits, 3>(f, width, parts, p, out, hint);
        break;
      default:
        values_rows<Bits, 4>(f, width, parts, p, out, hint);
        break;
    }
  }
}

TERSE_TARGET_AVX512 inline void values_affine(const AffineFormat& format, int width,
                                              const std::byte* record, const float* probabilities,
                                              int rows, float* accumulators,
                                              const std::byte* next) {
  if (format.granularity != Granularity::per_token || !covers(format, Side::value, width)) {
    return portable::values_affine(format, width, record, probabilities, rows, accumulators, next);
  }
  const ReadFormat f(format);
  const AffineParts parts(f, Side::value, width, record);
  const std::intptr_t ahead = distance(record, next);
  if (ahead != 0) prefetch_parameters(parts, ahead);
  switch (f.bits) {
    case 2:
      return values_bits<2>(f, width, parts, probabilities, rows, accumulators, ahead);
    case 4:
      return values_bits<4>(f, width, parts, probabilities, rows, accumulators, ahead);
    default:
      return values_bits<8>(f, width, parts, probabilities, rows, accumulators, ahead);
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
