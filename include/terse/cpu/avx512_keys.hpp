/// Scores straight from packed key records with AVX-512 VNNI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

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

/// Rows' words and starting sums for 16 tokens. Tokens with channel scales of their own have their
/// own.
struct KeyWords {
  const float* digits;         ///< [row, quad, 4 words]
  const CentreShare* centres;  ///< [row], or null: no centre
};

/// sum += codes x and y of 32 tokens times the words of R rows; those of y lie `to_other` further
/// on.
template <Digits D, int R, bool Shared>
TERSE_INLINE_AVX512 void add_key_dots(__m512i (&sum)[R][2][3], __m512i x, __m512i y,
                                      const float* digits, std::ptrdiff_t row_stride,
                                      std::ptrdiff_t to_other) noexcept {
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    const float* word = digits + r * row_stride;
    TERSE_UNROLL
    for (int i = D == Digits::shared ? 1 : 0; i < 3; ++i) {
      if constexpr (Shared) {
        dot_word(sum[r][0][i], x, sum[r][1][i], y, word + i);
      } else {
        dot_word(sum[r][0][i], x, word + i);
        dot_word(sum[r][1][i], y, word + to_other + i);
      }
    }
  }
}

/// dots[row][32]: integer products of R rows with 32 tokens: `runs` runs of bundles from `codes`
/// on. Where a bundle is that of one tile, the other's begin at `codes + second`.
template <int Bits, Digits D, int R, bool Shared>
TERSE_TARGET_AVX512 void key_dots(const std::byte* codes, std::ptrdiff_t second, int runs,
                                  const KeyWords& words, std::ptrdiff_t row_stride,
                                  const KeyWords& other, std::intptr_t ahead,
                                  float* dots) noexcept {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << Bits) - 1));
  __m512i sum[R][2][3];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < 2; ++v) {
      sum[r][v][0] = sum[r][v][1] = sum[r][v][2] = _mm512_setzero_si512();
    }
  }
  const float* digits = words.digits;
  const std::ptrdiff_t to_other = Shared ? 0 : other.digits - words.digits;
  for (int run = 0; run < runs; ++run) {
    if constexpr (tiles_per_bundle(Bits) == 2) {
      for (int vector = 0; vector < words_per_bundle(Bits); ++vector) {
        prefetch(codes + vector * 64, ahead);
      }
      TERSE_UNROLL
      for (int field = 0; field < fields; ++field) {
        const __m512i x = _mm512_and_si512(stored_codes<Bits>(codes, field), mask);
        const __m512i y = _mm512_and_si512(stored_codes<Bits>(codes, fields + field), mask);
        add_key_dots<D, R, Shared>(sum, x, y, digits + field * 4, row_stride, to_other);
      }
    } else {
      __m512i a = _mm512_loadu_si512(codes);
      __m512i b = _mm512_loadu_si512(codes + second);
      prefetch(codes, ahead);
      prefetch(codes + second, ahead);
      if constexpr (D == Digits::shared) {
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          dot_word(sum[r][0][0], a, sum[r][1][0], b, digits + r * row_stride);
        }
      }
      TERSE_ROLL
      for (int field = 0; field < fields; ++field) {
        const __m512i x = Bits == 8 ? a : _mm512_and_si512(a, mask);
        const __m512i y = Bits == 8 ? b : _mm512_and_si512(b, mask);
        if (Bits != 8) a = _mm512_srli_epi32(a, Bits);
        if (Bits != 8) b = _mm512_srli_epi32(b, Bits);
        add_key_dots<D, R, Shared>(sum, x, y, digits + field * 4, row_stride, to_other);
      }
    }
    codes += words_per_bundle(Bits) * 64;
    digits += fields * 4;
  }
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) {
    TERSE_UNROLL
    for (int v = 0; v < 2; ++v) {
      const CentreShare* centres = v == 0 || Shared ? words.centres : other.centres;
      if (centres != nullptr) {
        sum[r][v][1] = _mm512_add_epi32(sum[r][v][1], _mm512_set1_epi32(centres[r].start));
      }
      _mm512_storeu_ps(dots + r * 32 + v * 16, combine(sum[r][v][0], sum[r][v][1], sum[r][v][2]));
    }
  }
}

/// How queries of a per-token format are cut. Shared digits leave 20 bits below a row's largest
/// number, too few for the others where that one towers above them.
template <int Bits>
inline constexpr Digits usual_digits = Bits == 4 ? Digits::shared : Digits::three;
inline constexpr float shared_peak_per_rms = 4.0f;

/// Where `prepare_queries` puts things: digits `[row, quad, 4 words]`, the centre's shares
/// `[chunk, row]`, a scale per row, and which Digits the words are.
struct PreparedPlan {
  std::ptrdiff_t row_words;
  std::size_t shares_at, scales_at, digits_at, bytes;

  PreparedPlan(const AffineFormat& f, int rows, int width) noexcept
      : row_words(round_up(width, 16)),
        shares_at(static_cast<std::size_t>(rows * row_words) * 4),
        scales_at(shares_at + round_up(static_cast<std::size_t>(count_chunks(f, width) * rows) *
                                           sizeof(CentreShare),
                                       std::size_t{64})),
        digits_at(scales_at + round_up(static_cast<std::size_t>(rows) * 4, std::size_t{64})),
        bytes(digits_at + 64) {}
};

inline bool wants_preparation(const AffineFormat& f, int width) noexcept {
  return f.granularity == Granularity::per_token && covers_affine(f, Side::key, width);
}

inline std::size_t prepared_bytes(const AffineFormat& f, int rows, int width) {
  return wants_preparation(f, width) ? PreparedPlan(f, rows, width).bytes : 0;
}

/// Words of `count` numbers x and of zeros up to `stored`; those of a number take 4 bytes at its
/// own index.
template <Digits D>
TERSE_TARGET_AVX512 void split_chunk(const float* x, int count, int stored, float inverse,
                                     std::byte* words, __m512i* total) noexcept {
  const __m512 scale = _mm512_set1_ps(inverse);
  if constexpr (D == Digits::three) {
    for (int c = 0; c < count; c += 16) {
      const __m512 part = _mm512_maskz_loadu_ps(first_lanes(count - c), x + c);
      _mm512_mask_storeu_epi32(words + c * 4, first_lanes(stored - c),
                               split_three(part, scale, total));
    }
  } else {
    for (int c = 0; c < count; c += 32) {
      const __m512 low = _mm512_maskz_loadu_ps(first_lanes(count - c), x + c);
      const __m512 high = _mm512_maskz_loadu_ps(first_lanes(count - c - 16), x + c + 16);
      // Every second four numbers are the partners of the four before.
      const SharedDigits digits =
          split_shared(_mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_f32x4(low, high, _MM_SHUFFLE(3, 1, 3, 1)), scale, total);
      const __m512i in_turn[2] = {
          _mm512_shuffle_i32x4(digits.first, digits.partner, _MM_SHUFFLE(1, 0, 1, 0)),
          _mm512_shuffle_i32x4(digits.first, digits.partner, _MM_SHUFFLE(3, 2, 3, 2))};
      for (int half = 0; half < 2; ++half) {
        _mm512_mask_storeu_epi32(
            words + (c + half * 16) * 4, first_lanes(stored - c - half * 16),
            _mm512_shuffle_i32x4(in_turn[half], in_turn[half], _MM_SHUFFLE(3, 1, 2, 0)));
      }
    }
  }
}

template <Digits D>
TERSE_TARGET_AVX512 void split_rows(const AffineFormat& f, const float* queries, int rows,
                                    int width, std::byte* prepared) {
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
    set_scales<D>(max_each(peak, peak, peak, peak), &fixed);
    scales[row] = fixed.scale[0] + _mm512_reduce_add_ps(poison);
    for (int chunk = 0, begin = 0, count = 0; begin < width; begin += count, ++chunk) {
      count = chunk_size(f, width, begin);
      __m512i total[affine_rows];
      TERSE_UNROLL
      for (int r = 0; r < affine_rows; ++r) total[r] = _mm512_setzero_si512();
      split_chunk<D>(q + begin, count, round_up(count, codes_per_lane(f.bits)), fixed.inverse[0],
                     digits + begin * 4, total);
      store_shares<D>(f.centre, total, round_up(count, D == Digits::three ? 16 : 32), 1,
                      &shares[chunk * rows + row]);
    }
  }
}

/// Whether a row has a number that towers above its others; then all rows of the call get three
/// digits. (Rows of at most 16 numbers have no such.)
TERSE_TARGET_AVX512 inline bool has_spike(const float* queries, int rows, int width) noexcept {
  for (int row = 0; row < rows; ++row) {
    const float* q = queries + static_cast<std::ptrdiff_t>(row) * width;
    __m512 peak = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int c = 0; c < width; c += 16) {
      const __m512 x = _mm512_maskz_loadu_ps(first_lanes(width - c), q + c);
      peak = max_magnitude(peak, x);
      squares = _mm512_fmadd_ps(x, x, squares);
    }
    const float top = _mm512_reduce_max_ps(_mm512_abs_ps(peak));
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    if (top * top > shared_peak_per_rms * shared_peak_per_rms * mean) return true;
  }
  return false;
}

TERSE_TARGET_AVX512 inline void prepare_queries(const AffineFormat& f, const float* queries,
                                                int rows, int width, std::byte* prepared) {
  if (!wants_preparation(f, width)) return;
  const Digits digits =
      f.bits == 4 && !has_spike(queries, rows, width) ? usual_digits<4> : Digits::three;
  std::memcpy(prepared + PreparedPlan(f, rows, width).digits_at, &digits, sizeof digits);
  if (digits == Digits::shared) {
    split_rows<Digits::shared>(f, queries, rows, width, prepared);
  } else {
    split_rows<Digits::three>(f, queries, rows, width, prepared);
  }
}

template <int Bits, Digits D, int R>
TERSE_TARGET_AVX512 void scores_per_token(const AffineFormat& f, int width,
                                          const AffineParts& parts, const float* queries,
                                          const std::byte* prepared, int rows, int row,
                                          float* scores, std::intptr_t ahead) noexcept {
  constexpr int span = codes_per_lane(Bits);
  const PreparedPlan plan(f, rows, width);
  const auto* digits =
      reinterpret_cast<const float*>(prepared) + static_cast<std::ptrdiff_t>(row) * plan.row_words;
  const auto* shares = reinterpret_cast<const CentreShare*>(prepared + plan.shares_at) + row;
  const auto* scales = reinterpret_cast<const float*>(prepared + plan.scales_at) + row;
  const std::ptrdiff_t second = runs_per_lane(Bits, Side::key, width) * 64;
  float dots[R * 32];
  for (int begin = 0, count = 0; begin < width; begin += count, shares += rows) {
    count = chunk_size(f, width, begin);
    const int group = f.group == 0 ? 0 : begin / f.group;
    const KeyWords words{digits + begin, shares};
    for (int tile = 0; tile < 2; ++tile) {
      const std::byte* codes =
          parts.codes + bundle_vector(Bits, Side::key, width, 2 * tile, begin / span) * 64;
      key_dots<Bits, D, R, true>(codes, second, ceil_div(count, span), words, plan.row_words, words,
                                 ahead, dots);
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
    // A token's minimum multiplies the sum of the group's queries.
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

/// The queries of one chunk multiplied by the channel scales of one token group, in digits.
struct FoldedQueries {
  alignas(64) float words[affine_rows][chunk_channels];
  CentreShare centres[affine_rows];
  alignas(16) float offsets[affine_rows];  ///< sum of query times group minimum
};
inline constexpr int max_token_groups = block_tokens / 16;

/// Scales that hold for all token groups: the largest product of a query with its channel's largest
/// scale. One reduction serves all of them.
template <int R>
TERSE_TARGET_AVX512 void measure_queries(const AffineFormat& f, int width, const AffineParts& parts,
                                         const float* queries, int begin, int count,
                                         FixedScales* fixed) noexcept {
  const int groups = block_tokens / f.group;
  __m512 peak[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) peak[r] = _mm512_setzero_ps();
  for (int c = begin; c < begin + count; c += 16) {
    const __mmask16 lanes = first_lanes(begin + count - c);
    __m512 scale = load_halves(parts.scales, c, lanes);
    for (int g = 1; g < groups; ++g) {
      scale = max_magnitude(scale, load_halves(parts.scales, g * width + c, lanes));
    }
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 x = _mm512_maskz_loadu_ps(lanes, queries + r * width + c);
      peak[r] = max_magnitude(peak[r], _mm512_mul_ps(x, scale));
    }
  }
  set_scales<Digits::three>(max_each(peak[0], peak[1], peak[2], peak[3]), fixed);
}

/// Without minima the codes have a centre, with them they count from the minimum.
template <int R, bool HasMin>
TERSE_TARGET_AVX512 void fold_queries(const AffineFormat& f, int width, const AffineParts& parts,
                                      const float* queries, int begin, int count, int group,
                                      const FixedScales& fixed, FoldedQueries* folded) noexcept {
  __m512 inverse[R], offset[affine_rows];
  __m512i total[affine_rows];
  TERSE_UNROLL
  for (int r = 0; r < R; ++r) inverse[r] = _mm512_set1_ps(fixed.inverse[r]);
  TERSE_UNROLL
  for (int r = 0; r < affine_rows; ++r) {
    offset[r] = _mm512_setzero_ps();
    total[r] = _mm512_setzero_si512();
  }
  for (int c = 0; c < count; c += 16) {
    const __mmask16 lanes = first_lanes(count - c);
    const int at = group * width + begin + c;
    const __m512 scale = load_halves(parts.scales, at, lanes);
    __m512 minimum = _mm512_setzero_ps();
    if constexpr (HasMin) minimum = load_halves(parts.minima, at, lanes);
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512 x = _mm512_maskz_loadu_ps(lanes, queries + r * width + begin + c);
      offset[r] = _mm512_fmadd_ps(x, minimum, offset[r]);  // NaN where x is not finite
      _mm512_store_si512(folded->words[r] + c,
                         split_three(_mm512_mul_ps(x, scale), inverse[r], &total[r]));
    }
  }
  _mm_store_ps(folded->offsets, sum_each(offset[0], offset[1], offset[2], offset[3]));
  if constexpr (!HasMin) {
    store_shares<Digits::three>(f.centre, total, round_up(count, 16), R, folded->centres);
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX512 void scores_per_channel(const AffineFormat& f, int width,
                                            const AffineParts& parts, const float* queries,
                                            float* scores, std::intptr_t ahead) noexcept {
  constexpr int span = codes_per_lane(Bits);
  const std::ptrdiff_t second = runs_per_lane(Bits, Side::key, width) * 64;
  const int groups = block_tokens / f.group;
  FoldedQueries folded[max_token_groups];
  FixedScales fixed;
  float dots[R * 32];
  for (int begin = 0, count = 0; begin < width; begin += count) {
    count = chunk_size(f, width, begin);
    measure_queries<R>(f, width, parts, queries, begin, count, &fixed);
    for (int g = 0; g < groups; ++g) {
      if (f.has_min) {
        fold_queries<R, true>(f, width, parts, queries, begin, count, g, fixed, &folded[g]);
      } else {
        fold_queries<R, false>(f, width, parts, queries, begin, count, g, fixed, &folded[g]);
      }
    }
    for (int tile = 0; tile < 2; ++tile) {
      const FoldedQueries* own[2] = {&folded[tile * 32 / f.group],
                                     &folded[(tile * 32 + 16) / f.group]};
      const std::byte* codes =
          parts.codes + bundle_vector(Bits, Side::key, width, 2 * tile, begin / span) * 64;
      const int runs = ceil_div(count, span);
      KeyWords words[2];
      TERSE_UNROLL
      for (int v = 0; v < 2; ++v) {
        words[v] = {own[v]->words[0], f.has_min ? nullptr : own[v]->centres};
      }
      if (own[0] == own[1]) {
        key_dots<Bits, Digits::three, R, true>(codes, second, runs, words[0], chunk_channels,
                                               words[1], ahead, dots);
      } else {
        key_dots<Bits, Digits::three, R, false>(codes, second, runs, words[0], chunk_channels,
                                                words[1], ahead, dots);
      }
      TERSE_UNROLL
      for (int v = 0; v < 2; ++v) {
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          float* out = scores + r * block_tokens + tile * 32 + v * 16;
          const float scale = fixed.scale[r];
          const float offset =
              f.has_min ? own[v]->offsets[r] : own[v]->offsets[r] - own[v]->centres[r].rest * scale;
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
TERSE_TARGET_AVX512 void scores_rows(const AffineFormat& f, int width, const AffineParts& parts,
                                     const float* queries, const std::byte* prepared, int rows,
                                     int row, float* scores, std::intptr_t ahead) noexcept {
  float* out = scores + static_cast<std::ptrdiff_t>(row) * block_tokens;
  if (f.granularity == Granularity::per_token) {
    Digits digits;
    std::memcpy(&digits, prepared + PreparedPlan(f, rows, width).digits_at, sizeof digits);
    if (digits == usual_digits<Bits>) {
      scores_per_token<Bits, usual_digits<Bits>, R>(f, width, parts, queries, prepared, rows, row,
                                                    out, ahead);
    } else {
      scores_per_token<Bits, Digits::three, R>(f, width, parts, queries, prepared, rows, row, out,
                                               ahead);
    }
  } else {
    scores_per_channel<Bits, R>(f, width, parts, queries + static_cast<std::ptrdiff_t>(row) * width,
                                out, ahead);
  }
}

template <int Bits>
TERSE_TARGET_AVX512 void scores_bits(const AffineFormat& f, int width, const AffineParts& parts,
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

TERSE_TARGET_AVX512 inline void scores_affine(const AffineFormat& f, int width,
                                              const std::byte* record, const float* queries,
                                              const std::byte* prepared, int rows, float* scores,
                                              const std::byte* next) {
  if (!covers_affine(f, Side::key, width)) {
    return portable::scores_affine(f, width, record, queries, prepared, rows, scores, next);
  }
  const AffineParts parts(f, Side::key, width, record);
  const std::intptr_t ahead = distance(record, next);
  if (ahead != 0) prefetch_parameters(parts, ahead);
  switch (f.bits) {
    case 2:
      return scores_bits<2>(f, width, parts, queries, prepared, rows, scores, ahead);
    case 3:
      return scores_bits<3>(f, width, parts, queries, prepared, rows, scores, ahead);
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
