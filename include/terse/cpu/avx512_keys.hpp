/// Scores straight from packed key records with AVX-512 VNNI.
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

/// Codes of 64 tokens: vectors of 16 tokens and 4 channels. A tile is two such vectors.
template <int Bits>
struct KeyTile {
  const std::byte* first;
  std::ptrdiff_t second;  ///< bytes from the tile's first vectors to its second ones (8 bits)
  int shift;

  KeyTile(const std::byte* codes, int stored_quads, int first_quad, int tile) noexcept
      : first(codes +
              (Bits == 8   ? 2 * tile * stored_quads
               : Bits == 4 ? tile * stored_quads
                           : 0) *
                  64 +
              first_quad * 64),
        second(stored_quads * 64),
        shift(Bits == 2 ? 4 * tile : 0) {}
};

/// dots[row][32]: integer products of R rows with the 32 tokens of a tile. `digits` [row, quad, 4]
/// serve the first 16 tokens, those `other` words on the last 16.
template <int Bits, int R, bool Shared>
TERSE_TARGET_AVX512 void key_dots(KeyTile<Bits> tile, int quads, const float* digits,
                                  std::ptrdiff_t row_stride, std::ptrdiff_t other,
                                  const CentreShare* centres, std::ptrdiff_t other_centre,
                                  std::intptr_t ahead, float* dots) noexcept {
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1));
  const __m128i shift = _mm_cvtsi32_si128(tile.shift);
  __m512i sum[R][2][3];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < 2; ++v) {
      sum[r][v][0] = sum[r][v][2] = _mm512_setzero_si512();
      sum[r][v][1] = _mm512_set1_epi32(centres[r + v * other_centre].start);
    }
  }
  const std::byte* codes = tile.first;
  for (int quad = 0; quad < quads; ++quad) {
    __m512i a = _mm512_loadu_si512(codes);
    __m512i b;
    prefetch(codes, ahead);
    if constexpr (Bits == 8) {
      b = _mm512_loadu_si512(codes + tile.second);
      prefetch(codes + tile.second, ahead);
    } else {
      if constexpr (Bits == 2) a = _mm512_srl_epi32(a, shift);
      b = _mm512_and_si512(_mm512_srli_epi32(a, Bits), mask);
      a = _mm512_and_si512(a, mask);
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* words = digits + r * row_stride;
      TERSE_UNROLL
      for (int i = 0; i < 3; ++i) {
        dot_word(sum[r][0][i], a, words + i);
        dot_word(sum[r][1][i], b, words + (Shared ? 0 : other) + i);
      }
    }
    codes += 64;
    digits += 4;
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < 2; ++v) {
      _mm512_storeu_ps(dots + r * 32 + v * 16, combine(sum[r][v][0], sum[r][v][1], sum[r][v][2]));
    }
  }
}

/// Where `prepare_queries` puts things: digits `[row, quad, 4 words]`, the centre's shares
/// `[chunk, row]`, and a scale per row.
struct PreparedPlan {
  std::ptrdiff_t row_words;
  std::size_t shares_at, scales_at, bytes;

  PreparedPlan(const AffineFormat& f, int rows, int width) noexcept
      : row_words(round_up(width, 16)),
        shares_at(static_cast<std::size_t>(rows * row_words) * 4),
        scales_at(shares_at + round_up(static_cast<std::size_t>(count_chunks(f, width) * rows) *
                                           sizeof(CentreShare),
                                       std::size_t{64})),
        bytes(scales_at + round_up(static_cast<std::size_t>(rows) * 4, std::size_t{64})) {}
};

inline bool wants_preparation(const AffineFormat& f, int width) noexcept {
  return f.granularity == Granularity::per_token && covers(f, Side::key, width);
}

inline std::size_t prepared_bytes(const AffineFormat& f, int rows, int width) {
  return wants_preparation(f, width) ? PreparedPlan(f, rows, width).bytes : 0;
}

TERSE_TARGET_AVX512 inline void prepare_queries(const AffineFormat& format, const float* queries,
                                                int rows, int width, std::byte* prepared) {
  if (!wants_preparation(format, width)) return;
  const ReadFormat f(format);
  const PreparedPlan plan(f, rows, width);
  auto* shares = reinterpret_cast<CentreShare*>(prepared + plan.shares_at);
  auto* scales = reinterpret_cast<float*>(prepared + plan.scales_at);
  for (int row = 0; row < rows; ++row) {
    const float* q = queries + static_cast<std::ptrdiff_t>(row) * width;
    std::byte* digits = prepared + row * plan.row_words * 4;
    __m512 peak = _mm512_setzero_ps();
    __m512 poison = _mm512_setzero_ps();  // NaN where a query is not finite
    for (int c = 0; c < width; c += 16) {
      const __m512 x = _mm512_maskz_loadu_ps(first_lanes(width - c), q + c);
      peak = max_magnitude(peak, x);
      poison = _mm512_fmadd_ps(x, _mm512_setzero_ps(), poison);
    }
    FixedScales fixed;
    set_scales(max_each(peak, peak, peak, peak), &fixed);
    scales[row] = fixed.scale[0] + _mm512_reduce_add_ps(poison);
    for (int chunk = 0, begin = 0, count = 0; begin < width; begin += count, ++chunk) {
      count = chunk_size(f, width, begin);
      __m512i total[affine_rows];
      TERSE_UNROLL
      for (int r = 0; r < affine_rows; ++r) total[r] = _mm512_setzero_si512();
      for (int c = begin; c < begin + count; c += 16) {
        const __m512 x = _mm512_maskz_loadu_ps(first_lanes(begin + count - c), q + c);
        // Four numbers are 16 bytes; those of the next chunk are its own.
        _mm512_mask_storeu_epi32(digits + c * 4, first_lanes(round_up(begin + count - c, 4)),
                                 split_bytes(x, _mm512_set1_ps(fixed.inverse[0]), total));
      }
      store_shares(f, total, round_up(count, 16), 1, &shares[chunk * rows + row]);
    }
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_per_token(const ReadFormat& f, int width, const AffineParts& parts,
                                          const float* queries, const std::byte* prepared, int rows,
                                          int row, float* scores, std::intptr_t ahead) noexcept {
  const PreparedPlan plan(f, rows, width);
  const auto* digits =
      reinterpret_cast<const float*>(prepared) + static_cast<std::ptrdiff_t>(row) * plan.row_words;
  const auto* shares = reinterpret_cast<const CentreShare*>(prepared + plan.shares_at) + row;
  const auto* scales = reinterpret_cast<const float*>(prepared + plan.scales_at) + row;
  const int stored_quads = ceil_div(width, 4);
  float dots[R * 32];
  for (int begin = 0, count = 0; begin < width; begin += count, shares += rows) {
    count = chunk_size(f, width, begin);
    const int group = f.group == 0 ? 0 : begin / f.group;
    for (int tile = 0; tile < 2; ++tile) {
      key_dots<Bits, R, true>(KeyTile<Bits>(parts.codes, stored_quads, begin / 4, tile),
                              ceil_div(count, 4), digits + begin, plan.row_words, 0, shares, 0,
                              Bits == 2 && tile == 1 ? 0 : ahead, dots);
      TERSE_UNROLL
      for (int v = 0; v < 2; ++v) {
        const int t = tile * 32 + v * 16;
        const __m512 token_scale = load_halves(parts.scales, group * block_tokens + t);
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          const __m512 factor = _mm512_mul_ps(token_scale, _mm512_set1_ps(scales[r]));
          const __m512 dot = _mm512_sub_ps(_mm512_loadu_ps(dots + r * 32 + v * 16),
                                           _mm512_set1_ps(shares[r].rest));
          float* out = scores + r * block_tokens + t;
          const __m512 old = begin == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(out);
          _mm512_storeu_ps(out, _mm512_fmadd_ps(dot, factor, old));
        }
      }
    }
    if (!f.has_min) continue;
    // A token's middle multiplies the sum of the group's queries.
    for (int r = 0; r < R; ++r) {
      const float* q = queries + static_cast<std::ptrdiff_t>(row + r) * width;
      __m512 sum = _mm512_setzero_ps();
      for (int c = begin; c < begin + count; c += 16) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(begin + count - c), q + c));
      }
      const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
      for (int t = 0; t < block_tokens; t += 16) {
        float* out = scores + r * block_tokens + t;
        const int at = group * block_tokens + t;
        const __m512 middle =
            middles(f, load_halves(parts.scales, at), load_halves(parts.minima, at));
        _mm512_storeu_ps(out, _mm512_fmadd_ps(total, middle, _mm512_loadu_ps(out)));
      }
    }
  }
}

/// The queries of one chunk multiplied by the channel scales of one token group, split into bytes.
struct Folded {
  alignas(64) float words[affine_rows][chunk_channels];
  FixedScales fixed;
  CentreShare centres[affine_rows];
  alignas(16) float offsets[affine_rows];  ///< sum of query times group middle
};
inline constexpr int max_token_groups = block_tokens / 16;

/// 16 channels of R query rows and of the channel parameters, `lanes` of them where not Full.
template <int R, bool Full>
struct FoldInput {
  const ReadFormat& f;
  const AffineParts& parts;
  const float* queries;
  std::ptrdiff_t width;
  int params;  ///< index of the first channel's scale
  __mmask16 lanes;

  TERSE_INLINE_AVX512 __m512 query(int r, int c) const noexcept {
    const float* q = queries + r * width + c;
    return Full ? _mm512_loadu_ps(q) : _mm512_maskz_loadu_ps(lanes, q);
  }
  TERSE_INLINE_AVX512 __m512 scale(int c) const noexcept {
    return Full ? load_halves(parts.scales, params + c)
                : load_halves(parts.scales, params + c, lanes);
  }
  TERSE_INLINE_AVX512 __m512 middle(int c, __m512 scale_of_c) const noexcept {
    if (!f.has_min) return _mm512_setzero_ps();
    return middles(f, scale_of_c,
                   Full ? load_halves(parts.minima, params + c)
                        : load_halves(parts.minima, params + c, lanes));
  }
  TERSE_INLINE_AVX512 void measure(int c, __m512* peak, __m512* offset) const noexcept {
    const __m512 s = scale(c), m = middle(c, s);
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 x = query(r, c);
      peak[r] = max_magnitude(peak[r], _mm512_mul_ps(x, s));
      offset[r] = _mm512_fmadd_ps(x, m, offset[r]);  // NaN where x is not finite
    }
  }
  /// Makes the products a second time: storing them would take longer.
  TERSE_INLINE_AVX512 void split(int c, const __m512* inverse, __m512i* total,
                                 Folded* folded) const noexcept {
    const __m512 s = scale(c);
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      _mm512_store_si512(folded->words[r] + c,
                         split_bytes(_mm512_mul_ps(query(r, c), s), inverse[r], &total[r]));
    }
  }
};

/// The first half of folding: scales and offsets of R rows.
template <int R>
TERSE_TARGET_AVX512 void measure_queries(const ReadFormat& f, int width, const AffineParts& parts,
                                         const float* queries, int begin, int count, int group,
                                         Folded* folded) noexcept {
  __m512 peak[affine_rows], offset[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) peak[r] = offset[r] = _mm512_setzero_ps();
  const FoldInput<R, true> full{f, parts, queries + begin, width, group * width + begin, 0};
  const FoldInput<R, false> rest{
      f, parts, queries + begin, width, group * width + begin, first_lanes(count % 16)};
  int c = 0;
  for (; c + 16 <= count; c += 16) full.measure(c, peak, offset);
  if (c < count) rest.measure(c, peak, offset);
  set_scales(max_each(peak[0], peak[1], peak[2], peak[3]), &folded->fixed);
  _mm_store_ps(folded->offsets, sum_each(offset[0], offset[1], offset[2], offset[3]));
}

/// The second half: the bytes.
template <int R>
TERSE_TARGET_AVX512 void split_queries(const ReadFormat& f, int width, const AffineParts& parts,
                                       const float* queries, int begin, int count, int group,
                                       Folded* folded) noexcept {
  __m512 inverse[R];
  __m512i total[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) inverse[r] = _mm512_set1_ps(folded->fixed.inverse[r]);
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) total[r] = _mm512_setzero_si512();
  const FoldInput<R, true> full{f, parts, queries + begin, width, group * width + begin, 0};
  const FoldInput<R, false> rest{
      f, parts, queries + begin, width, group * width + begin, first_lanes(count % 16)};
  int c = 0;
  for (; c + 16 <= count; c += 16) full.split(c, inverse, total, folded);
  if (c < count) rest.split(c, inverse, total, folded);
  store_shares(f, total, round_up(count, 16), R, folded->centres);
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_per_channel(const ReadFormat& f, int width,
                                            const AffineParts& parts, const float* queries,
                                            float* scores, std::intptr_t ahead) noexcept {
  const int stored_quads = ceil_div(width, 4);
  const int groups = block_tokens / f.group;
  Folded folded[max_token_groups];
  float dots[R * 32];
  for (int begin = 0, count = 0; begin < width; begin += count) {
    count = chunk_size(f, width, begin);
    // Group by group within each half, so that one's reductions hide behind another's products.
    for (int g = 0; g < groups; ++g) {
      measure_queries<R>(f, width, parts, queries, begin, count, g, &folded[g]);
    }
    for (int g = 0; g < groups; ++g) {
      split_queries<R>(f, width, parts, queries, begin, count, g, &folded[g]);
    }
    for (int tile = 0; tile < 2; ++tile) {
      const Folded* own[2] = {&folded[tile * 32 / f.group], &folded[(tile * 32 + 16) / f.group]};
      const KeyTile<Bits> codes(parts.codes, stored_quads, begin / 4, tile);
      const std::intptr_t hint = Bits == 2 && tile == 1 ? 0 : ahead;
      const int quads = ceil_div(count, 4);
      if (own[0] == own[1]) {
        key_dots<Bits, R, true>(codes, quads, own[0]->words[0], chunk_channels, 0, own[0]->centres,
                                0, hint, dots);
      } else {
        constexpr auto next_group = static_cast<std::ptrdiff_t>(sizeof(Folded));
        static_assert(next_group % sizeof(CentreShare) == 0);
        key_dots<Bits, R, false>(
            codes, quads, own[0]->words[0], chunk_channels,
            next_group / static_cast<std::ptrdiff_t>(sizeof(float)), own[0]->centres,
            next_group / static_cast<std::ptrdiff_t>(sizeof(CentreShare)), hint, dots);
      }
      TERSE_UNROLL
      for (int v = 0; v < 2; ++v) {
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          float* out = scores + r * block_tokens + tile * 32 + v * 16;
          const float scale = own[v]->fixed.scale[r];
          const float offset = own[v]->offsets[r] - own[v]->centres[r].rest * scale;
          __m512 sum = _mm512_fmadd_ps(_mm512_loadu_ps(dots + r * 32 + v * 16),
                                       _mm512_set1_ps(scale), _mm512_set1_ps(offset));
          if (begin != 0) sum = _mm512_add_ps(sum, _mm512_loadu_ps(out));
          _mm512_storeu_ps(out, sum);
        }
      }
    }
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_rows(const ReadFormat& f, int width, const AffineParts& parts,
                                     const float* queries, const std::byte* prepared, int rows,
                                     int row, float* scores, std::intptr_t ahead) noexcept {
  float* out = scores + static_cast<std::ptrdiff_t>(row) * block_tokens;
  if (f.granularity == Granularity::per_token) {
    scores_per_token<Bits, R>(f, width, parts, queries, prepared, rows, row, out, ahead);
  } else {
    scores_per_channel<Bits, R>(f, width, parts, queries + static_cast<std::ptrdiff_t>(row) * width,
                                out, ahead);
  }
}

template <int Bits>
TERSE_TARGET_AVX512 void scores_bits(const ReadFormat& f, int width, const AffineParts& parts,
                                     const float* queries, const std::byte* prepared, int rows,
                                     float* scores, std::intptr_t ahead) noexcept {
  for (int row = 0; row < rows; row += affine_rows) {
    const std::intptr_t hint = row == 0 ? ahead : 0;
    switch (rows - row) {
      case 1:
        scores_rows<Bits, 1>(f, width, parts, queries, prepared, rows, row, scores, hint);
        break;
      case 2:
        scores_rows<Bits, 2>(f, width, parts, queries, prepared, rows, row, scores, hint);
        break;
      case 3:
        scores_rows<Bits, 3>(f, width, parts, queries, prepared, rows, row, scores, hint);
        break;
      default:
        scores_rows<Bits, 4>(f, width, parts, queries, prepared, rows, row, scores, hint);
        break;
    }
  }
}

TERSE_TARGET_AVX512 inline void scores_affine(const AffineFormat& format, int width,
                                              const std::byte* record, const float* queries,
                                              const std::byte* prepared, int rows, float* scores,
                                              const std::byte* next) {
  if (!covers(format, Side::key, width)) {
    return portable::scores_affine(format, width, record, queries, prepared, rows, scores, next);
  }
  const ReadFormat f(format);
  const AffineParts parts(f, Side::key, width, record);
  const std::intptr_t ahead = distance(record, next);
  if (ahead != 0) prefetch_parameters(parts, ahead);
  switch (f.bits) {
    case 2:
      return scores_bits<2>(f, width, parts, queries, prepared, rows, scores, ahead);
    case 4:
      return scores_bits<4>(f, width, parts, queries, prepared, rows, scores, ahead);
    default:
      return scores_bits<8>(f, width, parts, queries, prepared, rows, scores, ahead);
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
