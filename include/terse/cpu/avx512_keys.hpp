/// Scores straight from packed key records with AVX-512 VNNI.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cpu/avx512_fixed_point.hpp"
#include "terse/cpu/portable.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse::cpu {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace avx512 {
TERSE_BEGIN_AVX512

/// Codes of 64 tokens: vectors of 16 tokens and 4 channels. A tile is two such vectors.
template <int Bits>
struct KeyTile {
  const std::byte* first;
  std::ptrdiff_t second;  ///< bytes from the tile's first vectors to its second ones (8 bits)
  int shift;

  KeyTile(const std::byte* codes, int stored_quads, int first_quad, int tile) noexcept
      : first(codes + (Bits == 8   ? 2 * tile * stored_quads
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
      _mm512_storeu_ps(dots + r * 32 + v * 16,
                       combine(sum[r][v][0], sum[r][v][1], sum[r][v][2]));
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

TERSE_TARGET_AVX512 inline void prepare_queries(const AffineFormat& f, const float* queries,
                                                int rows, int width, std::byte* prepared) {
  if (!wants_preparation(f, width)) return;
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
      __m512i total = _mm512_setzero_si512();
      for (int c = begin; c < begin + count; c += 16) {
        const __m512 x = _mm512_maskz_loadu_ps(first_lanes(begin + count - c), q + c);
        // Four numbers are 16 bytes; those of the next chunk are its own.
        _mm512_mask_storeu_epi32(digits + c * 4, first_lanes(round_up(begin + count - c, 4)),
                                 split_bytes(x, _mm512_set1_ps(fixed.inverse[0]), &total));
      }
      shares[chunk * rows + row] =
          centre_share(f, _mm512_reduce_add_epi32(total), round_up(count, 16));
    }
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_per_token(const AffineFormat& f, int width,
                                          const AffineParts& parts, const float* queries,
                                          const std::byte* prepared, int rows, int row,
                                          float* scores, std::intptr_t ahead) noexcept {
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
    // A minimum per token multiplies the sum of the group's queries.
    for (int r = 0; r < R; ++r) {
      const float* q = queries + static_cast<std::ptrdiff_t>(row + r) * width;
      __m512 sum = _mm512_setzero_ps();
      for (int c = begin; c < begin + count; c += 16) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(begin + count - c), q + c));
      }
      const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
      for (int t = 0; t < block_tokens; t += 16) {
        float* out = scores + r * block_tokens + t;
        _mm512_storeu_ps(out,
                         _mm512_fmadd_ps(total, load_halves(parts.minima, group * block_tokens + t),
                                         _mm512_loadu_ps(out)));
      }
    }
  }
}

/// The queries of one chunk multiplied by the channel scales of one token group, split into bytes.
struct Folded {
  alignas(64) float words[affine_rows][chunk_channels];
  CentreShare centres[affine_rows];
  float scales[affine_rows];
  float offsets[affine_rows];  ///< sum of query times group minimum, less the centre's rest
};

/// What one row gathers while its queries are folded.
struct FoldSums {
  __m512 peak, offset;
  __m512i total;
};

template <int R>
struct QueryFold {
  const AffineFormat& f;
  const AffineParts& parts;
  const float* queries;
  std::ptrdiff_t width;
  int params;  ///< index of the first channel's scale
  FoldSums sums[affine_rows];

  /// Finds the largest product and the minima's share, 16 channels from `c` on.
  template <bool Full>
  TERSE_INLINE_AVX512 void measure(int c, __mmask16 lanes) noexcept {
    const __m512 scale = Full ? load_halves(parts.scales, params + c)
                              : load_halves(parts.scales, params + c, lanes);
    __m512 minimum = _mm512_setzero_ps();
    if (f.has_min) {
      minimum = Full ? load_halves(parts.minima, params + c)
                     : load_halves(parts.minima, params + c, lanes);
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* q = queries + r * width + c;
      const __m512 x = Full ? _mm512_loadu_ps(q) : _mm512_maskz_loadu_ps(lanes, q);
      sums[r].peak = max_magnitude(sums[r].peak, _mm512_mul_ps(x, scale));
      sums[r].offset = _mm512_fmadd_ps(x, minimum, sums[r].offset);  // NaN where x is not finite
    }
  }

  /// Makes the products a second time (storing them would take longer) and splits them.
  template <bool Full>
  TERSE_INLINE_AVX512 void split(int c, __mmask16 lanes, const __m512* inverse,
                                 Folded* folded) noexcept {
    const __m512 scale = Full ? load_halves(parts.scales, params + c)
                              : load_halves(parts.scales, params + c, lanes);
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* q = queries + r * width + c;
      const __m512 x = Full ? _mm512_loadu_ps(q) : _mm512_maskz_loadu_ps(lanes, q);
      _mm512_store_si512(folded->words[r] + c,
                         split_bytes(_mm512_mul_ps(x, scale), inverse[r], &sums[r].total));
    }
  }
};

template <int R>
TERSE_TARGET_AVX512 void fold_queries(const AffineFormat& f, int width, const AffineParts& parts,
                                      const float* queries, int begin, int count, int group,
                                      Folded* folded) noexcept {
  QueryFold<R> fold{f, parts, queries + begin, width, group * width + begin, {}};
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) {
    fold.sums[r] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_si512()};
  }
  const __mmask16 rest = first_lanes(count % 16);
  int c = 0;
  for (; c + 16 <= count; c += 16) fold.template measure<true>(c, rest);
  if (c < count) fold.template measure<false>(c, rest);
  FixedScales fixed;
  set_scales(max_each(fold.sums[0].peak, fold.sums[1].peak, fold.sums[2].peak, fold.sums[3].peak),
             &fixed);
  __m512 inverse[R];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) inverse[r] = _mm512_set1_ps(fixed.inverse[r]);
  for (c = 0; c + 16 <= count; c += 16) fold.template split<true>(c, rest, inverse, folded);
  if (c < count) fold.template split<false>(c, rest, inverse, folded);
  alignas(16) int totals[affine_rows];
  alignas(16) float offsets[affine_rows];
  _mm_store_si128(reinterpret_cast<__m128i*>(totals),
                  sum_each(fold.sums[0].total, fold.sums[1].total, fold.sums[2].total,
                           fold.sums[3].total));
  _mm_store_ps(offsets, sum_each(fold.sums[0].offset, fold.sums[1].offset, fold.sums[2].offset,
                                 fold.sums[3].offset));
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    folded->centres[r] = centre_share(f, totals[r], round_up(count, 16));
    folded->scales[r] = fixed.scale[r];
    folded->offsets[r] = offsets[r] - folded->centres[r].rest * fixed.scale[r];
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_per_channel(const AffineFormat& f, int width,
                                            const AffineParts& parts, const float* queries,
                                            float* scores, std::intptr_t ahead) noexcept {
  const int stored_quads = ceil_div(width, 4);
  constexpr std::ptrdiff_t other = sizeof(Folded) / sizeof(float);
  Folded folded[2];
  float dots[R * 32];
  for (int begin = 0, count = 0; begin < width; begin += count) {
    count = chunk_size(f, width, begin);
    for (int tile = 0; tile < 2; ++tile) {
      const int group = tile * 32 / f.group;
      const bool split = f.group < 32;
      if (tile == 0 || f.group != 64) {
        fold_queries<R>(f, width, parts, queries, begin, count, group, &folded[0]);
      }
      if (split) fold_queries<R>(f, width, parts, queries, begin, count, group + 1, &folded[1]);
      const KeyTile<Bits> codes(parts.codes, stored_quads, begin / 4, tile);
      const std::intptr_t hint = Bits == 2 && tile == 1 ? 0 : ahead;
      const int quads = ceil_div(count, 4);
      if (split) {
        key_dots<Bits, R, false>(codes, quads, folded[0].words[0], chunk_channels, other,
                                 folded[0].centres,
                                 static_cast<std::ptrdiff_t>(sizeof(Folded) / sizeof(CentreShare)),
                                 hint, dots);
      } else {
        key_dots<Bits, R, true>(codes, quads, folded[0].words[0], chunk_channels, 0,
                                folded[0].centres, 0, hint, dots);
      }
      TERSE_UNROLL
      for (int v = 0; v < 2; ++v) {
        const Folded& own = folded[split ? v : 0];
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          float* out = scores + r * block_tokens + tile * 32 + v * 16;
          __m512 sum = _mm512_fmadd_ps(_mm512_loadu_ps(dots + r * 32 + v * 16),
                                       _mm512_set1_ps(own.scales[r]),
                                       _mm512_set1_ps(own.offsets[r]));
          if (begin != 0) sum = _mm512_add_ps(sum, _mm512_loadu_ps(out));
          _mm512_storeu_ps(out, sum);
        }
      }
    }
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_rows(const AffineFormat& f, int width, const AffineParts& parts,
                                     const float* queries, const std::byte* prepared, int rows,
                                     int row, float* scores, std::intptr_t ahead) noexcept {
  float* out = scores + static_cast<std::ptrdiff_t>(row) * block_tokens;
  if (f.granularity == Granularity::per_token) {
    scores_per_token<Bits, R>(f, width, parts, queries, prepared, rows, row, out, ahead);
  } else {
    scores_per_channel<Bits, R>(
        f, width, parts, queries + static_cast<std::ptrdiff_t>(row) * width, out, ahead);
  }
}

template <int Bits>
TERSE_TARGET_AVX512 void scores_bits(const AffineFormat& f, int width, const AffineParts& parts,
                                     const float* queries, const std::byte* prepared, int rows,
                                     float* scores, std::intptr_t ahead) noexcept {
  for (int row = 0; row < rows; row += affine_rows) {
    const std::intptr_t hint = row == 0 ? ahead : 0;
    switch (rows - row) {
      case 1: scores_rows<Bits, 1>(f, width, parts, queries, prepared, rows, row, scores, hint); break;
      case 2: scores_rows<Bits, 2>(f, width, parts, queries, prepared, rows, row, scores, hint); break;
      case 3: scores_rows<Bits, 3>(f, width, parts, queries, prepared, rows, row, scores, hint); break;
      default: scores_rows<Bits, 4>(f, width, parts, queries, prepared, rows, row, scores, hint); break;
    }
  }
}

TERSE_TARGET_AVX512 inline void scores_affine(const AffineFormat& f, int width,
                                              const std::byte* record, const float* queries,
                                              const std::byte* prepared, int rows, float* scores,
                                              const std::byte* next) {
  if (!covers(f, Side::key, width)) {
    return portable::scores_affine(f, width, record, queries, prepared, rows, scores, next);
  }
  const AffineParts parts(f, Side::key, width, record);
  const std::intptr_t ahead = distance(record, next);
  if (ahead != 0) prefetch_parameters(parts, ahead);
  switch (f.bits) {
    case 2: return scores_bits<2>(f, width, parts, queries, prepared, rows, scores, ahead);
    case 4: return scores_bits<4>(f, width, parts, queries, prepared, rows, scores, ahead);
    default: return scores_bits<8>(f, width, parts, queries, prepared, rows, scores, ahead);
  }
}

TERSE_END_AVX512
}  // namespace avx512
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse::cpu

#endif
