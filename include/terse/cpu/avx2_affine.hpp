/// Packed integer codes with AVX2: codes become fp32 in registers and meet all rows there.
/// Without VNNI an integer product costs as much as an fp32 one, so there is nothing to gain by it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cpu/avx2_dense.hpp"
#include "terse/cpu/portable.hpp"
#include "terse/cpu/simd.hpp"

#if TERSE_X86_DISPATCH

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace avx2 {

/// Values with per-channel scales are decoded by portable code here.
inline bool covers(const AffineFormat& f, Side side, int width) noexcept {
  return covers_affine(f, side, width) &&
         !(side == Side::value && f.granularity == Granularity::per_channel);
}

/// Rows of one pass, and channels whose folded queries lie on the stack at a time.
inline constexpr int affine_rows = 4;
inline constexpr int chunk_channels = 256;

TERSE_INLINE_AVX2 __m256 load_halves(const std::byte* section, int index) noexcept {
  return LoadF16::load(reinterpret_cast<const F16*>(section) + index);
}

/// Where a group's codes are counted from, in value units: its minimum lifted to the middle.
TERSE_INLINE_AVX2 __m256 middles(const ReadFormat& f, const AffineParts& parts, int at) noexcept {
  return _mm256_fmadd_ps(load_halves(parts.scales, at), _mm256_set1_ps(f.lift),
                         load_halves(parts.minima, at));
}

/// Byte `byte` of every 32-bit lane of load_codes, less the centre.
template <int Bits>
TERSE_INLINE_AVX2 __m256 centred_codes(__m256i stored, int byte, __m256 centre) noexcept {
  const __m256i code =
      _mm256_and_si256(_mm256_srli_epi32(stored, 8 * byte), _mm256_set1_epi32((1 << Bits) - 1));
  return _mm256_sub_ps(_mm256_cvtepi32_ps(code), centre);
}

TERSE_INLINE_AVX2 __m256i load_shifted(const std::byte* at, unsigned shift) noexcept {
  return _mm256_srl_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)),
                          _mm_cvtsi32_si128(static_cast<int>(shift)));
}

/// The `field`-th codes of 8 lanes of a bundle, lowest in their bytes, below other bits.
template <int Bits>
TERSE_INLINE_AVX2 __m256i load_codes(const std::byte* bundle, int field) noexcept {
  const CodeField f = code_field<Bits>(field);
  const __m256i codes = load_shifted(bundle + f.vector * 64, f.shift);
  if (Bits != 3 || f.lower_bits == Bits) return codes;
  const __m256i upper = load_shifted(bundle + f.upper_vector * 64, f.upper_shift - f.lower_bits);
  const __m256i lower_bits = _mm256_set1_epi8(static_cast<char>((1 << f.lower_bits) - 1));
  return _mm256_or_si256(_mm256_and_si256(codes, lower_bits),
                         _mm256_andnot_si256(lower_bits, upper));
}

/// Hints for the bundle at `at`, once where two tiles share it.
template <int Bits>
TERSE_INLINE_AVX2 void prefetch_bundle(const std::byte* at, int tile) noexcept {
  if (tile % tiles_per_bundle(Bits) != 0) return;
  for (int vector = 0; vector < words_per_bundle(Bits); ++vector) prefetch(at + vector * 64);
}

/// Sums over stored vectors of R rows' products with their 16 lanes: tokens (keys) or channels
/// (values).
template <int Bits, int R>
struct Products {
  __m256 sum[R][2];

  TERSE_INLINE_AVX2 void clear() noexcept {
    TERSE_UNROLL
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  }
  /// One field of a bundle of 16 lanes x 4 bytes, met by `factors [row, 4]`.
  TERSE_INLINE_AVX2 void add(const std::byte* bundle, int field, __m256 centre,
                             const float* factors, std::ptrdiff_t row_stride) noexcept {
    const __m256i low = load_codes<Bits>(bundle, field);
    const __m256i high = load_codes<Bits>(bundle + 32, field);
    TERSE_UNROLL
    for (int byte = 0; byte < 4; ++byte) {
      const __m256 a = centred_codes<Bits>(low, byte, centre);
      const __m256 b = centred_codes<Bits>(high, byte, centre);
      TERSE_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256 x = _mm256_broadcast_ss(factors + r * row_stride + lane_byte(byte));
        sum[r][0] = _mm256_fmadd_ps(a, x, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(b, x, sum[r][1]);
      }
    }
  }
};

/// Queries of `count` channels from `begin` on, times the channel scales where there are any.
template <int R>
struct FoldedQueries {
  float x[R][chunk_channels];
  float offset[R];  ///< sum of query times channel middle
  float total[R];   ///< sum of queries

  TERSE_INLINE_AVX2 void fold(const ReadFormat& f, int width, const AffineParts& parts,
                              const float* queries, int begin, int count, int group) noexcept {
    const bool per_channel = f.granularity == Granularity::per_channel;
    for (int r = 0; r < R; ++r) {
      offset[r] = total[r] = 0.0f;
      const float* q = queries + static_cast<std::ptrdiff_t>(r) * width + begin;
      const int at = group * width + begin;
      __m256 sum = _mm256_setzero_ps();
      int c = 0;
      for (; c + 8 <= count; c += 8) {
        __m256 y = _mm256_loadu_ps(q + c);
        __m256 middle = _mm256_set1_ps(1.0f);
        if (per_channel) {
          middle = f.has_min ? middles(f, parts, at + c) : _mm256_setzero_ps();
        }
        sum = _mm256_fmadd_ps(y, middle, sum);
        if (per_channel) y = _mm256_mul_ps(y, load_halves(parts.scales, at + c));
        _mm256_storeu_ps(x[r] + c, y);
      }
      float rest = sum_lanes(sum);
      for (; c < count; ++c) {
        float middle = 1.0f;
        if (per_channel) {
          middle = f.has_min
                       ? fused_multiply_add(terse::detail::load_half(parts.scales, at + c), f.lift,
                                            terse::detail::load_half(parts.minima, at + c))
                       : 0.0f;
        }
        rest = fused_multiply_add(q[c], middle, rest);
        x[r][c] = per_channel ? q[c] * terse::detail::load_half(parts.scales, at + c) : q[c];
      }
      for (; c % 4 != 0; ++c) x[r][c] = 0.0f;
      (per_channel ? offset[r] : total[r]) = rest;
    }
  }
};

template <int Bits, int R>
TERSE_TARGET_AVX2 void scores_rows(const ReadFormat& f, int width, const AffineParts& parts,
                                   const float* queries, float* scores, const std::byte* next) {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const bool per_channel = f.granularity == Granularity::per_channel;
  const __m256 centre = _mm256_set1_ps(f.centre);
  FoldedQueries<R> folded;
  for (int begin = 0, count = 0; begin < width; begin += count) {
    int end = !per_channel && f.group != 0 ? (begin / f.group + 1) * f.group : width;
    if (end > width) end = width;
    count = end - begin < chunk_channels ? end - begin : chunk_channels;
    const int token_group = f.group == 0 ? 0 : begin / f.group;
    for (int t = 0; t < block_tokens; t += 16) {
      if (t == 0 || (per_channel && t % f.group == 0)) {
        folded.fold(f, width, parts, queries, begin, count, per_channel ? t / f.group : 0);
      }
      const int first = bundle_vector(Bits, Side::key, width, t / 16, begin / codes_per_lane(Bits));
      Products<Bits, R> products;
      products.clear();
      for (int quad = 0; quad < ceil_div(count, 4); ++quad) {
        const int bundle = (first + quad / fields * words_per_bundle(Bits)) * 64;
        prefetch_bundle<Bits>(next + bundle, t / 16);
        products.add(parts.codes + bundle, field_of<Bits>(t / 16, quad % fields), centre,
                     folded.x[0] + quad * 4, chunk_channels);
      }
      TERSE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = token_group * block_tokens + t + half * 8;
        TERSE_UNROLL
        for (int r = 0; r < R; ++r) {
          float* out = scores + r * block_tokens + t + half * 8;
          __m256 s = products.sum[r][half];
          if (per_channel) {
            s = _mm256_add_ps(s, _mm256_set1_ps(folded.offset[r]));
          } else {
            s = _mm256_mul_ps(s, load_halves(parts.scales, at));
            if (f.has_min) {
              s = _mm256_fmadd_ps(_mm256_set1_ps(folded.total[r]), middles(f, parts, at), s);
            }
          }
          if (begin != 0) s = _mm256_add_ps(s, _mm256_loadu_ps(out));
          _mm256_storeu_ps(out, s);
        }
      }
    }
  }
}

template <int Bits, int R>
TERSE_TARGET_AVX2 void values_rows(const ReadFormat& f, int width, const AffineParts& parts,
                                   const float* probabilities, float* accumulators,
                                   const std::byte* next) {
  constexpr int fields = codes_per_lane(Bits) / 4;
  const int group_channels = f.group == 0 || f.group > width ? width : f.group;
  const __m256 centre = _mm256_set1_ps(f.centre);
  float folded[R][block_tokens];
  float offsets[R];
  for (int begin = 0; begin < width; begin += group_channels) {
    const int at = begin / group_channels * block_tokens;
    for (int r = 0; r < R; ++r) {
      __m256 offset = _mm256_setzero_ps();
      for (int t = 0; t < block_tokens; t += 8) {
        const __m256 p = _mm256_loadu_ps(probabilities + r * block_tokens + t);
        _mm256_storeu_ps(folded[r] + t, _mm256_mul_ps(p, load_halves(parts.scales, at + t)));
        if (f.has_min) offset = _mm256_fmadd_ps(p, middles(f, parts, at + t), offset);
      }
      offsets[r] = sum_lanes(offset);
    }
    const int end = begin + group_channels < width ? begin + group_channels : width;
    for (int c = begin; c < end; c += 16) {
      const int tile = c / 16;
      const int first = bundle_vector(Bits, Side::value, width, tile, 0);
      const int vectors = bundle_vector(Bits, Side::value, width, tile, 1) - first;
      Products<Bits, R> products;
      products.clear();
      for (int quad = 0; quad < block_tokens / 4; ++quad) {
        const int step = quad / 4;  // of 16 tokens
        const int bundle = (first + (step / fields * 4 + quad % 4) * vectors) * 64;
        prefetch_bundle<Bits>(next + bundle, tile);
        products.add(parts.codes + bundle, field_of<Bits>(tile, step % fields), centre,
                     folded[0] + quad * 4, block_tokens);
      }
      TERSE_UNROLL
      for (int r = 0; r < R; ++r) {
        float* out = accumulators + static_cast<std::ptrdiff_t>(r) * width + c;
        const __m256 offset = _mm256_set1_ps(offsets[r]);
        add_to(out, _mm256_add_ps(products.sum[r][0], offset), end - c);
        if (end - c > 8) add_to(out + 8, _mm256_add_ps(products.sum[r][1], offset), end - c - 8);
      }
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX2 void scores_bits(const ReadFormat& f, int width, const AffineParts& parts,
                                   const float* queries, int rows, float* scores,
                                   const std::byte* next) {
  for (int row = 0; row < rows; row += affine_rows) {
    const float* q = queries + static_cast<std::ptrdiff_t>(row) * width;
    float* out = scores + static_cast<std::ptrdiff_t>(row) * block_tokens;
    const std::byte* hint = row == 0 && next != nullptr ? next : parts.codes;
    switch (rows - row) {
      case 1:
        scores_rows<Bits, 1>(f, width, parts, q, out, hint);
        break;
      case 2:
        scores_rows<Bits, 2>(f, width, parts, q, out, hint);
        break;
      case 3:
        scores_rows<Bits, 3>(f, width, parts, q, out, hint);
        break;
      default:
        scores_rows<Bits, 4>(f, width, parts, q, out, hint);
        break;
    }
  }
}

template <int Bits>
TERSE_TARGET_AVX2 void values_bits(const ReadFormat& f, int width, const AffineParts& parts,
                                   const float* probabilities, int rows, float* accumulators,
                                   const std::byte* next) {
  for (int row = 0; row < rows; row += affine_rows) {
    const float* p = probabilities + static_cast<std::ptrdiff_t>(row) * block_tokens;
    float* out = accumulators + static_cast<std::ptrdiff_t>(row) * width;
    const std::byte* hint = row == 0 && next != nullptr ? next : parts.codes;
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

TERSE_TARGET_AVX2 inline void scores_affine(const AffineFormat& format, int width,
                                            const std::byte* record, const float* queries,
                                            const std::byte* prepared, int rows, float* scores,
                                            const std::byte* next) {
  if (!covers_affine(format, Side::key, width)) {
    return portable::scores_affine(format, width, record, queries, prepared, rows, scores, next);
  }
  const ReadFormat f(format);
  const AffineParts parts(f, Side::key, width, record);
  switch (f.bits) {
    case 2:
      return scores_bits<2>(f, width, parts, queries, rows, scores, next);
    case 3:
      return scores_bits<3>(f, width, parts, queries, rows, scores, next);
    case 4:
      return scores_bits<4>(f, width, parts, queries, rows, scores, next);
    default:
      return scores_bits<8>(f, width, parts, queries, rows, scores, next);
  }
}

TERSE_TARGET_AVX2 inline void values_affine(const AffineFormat& format, int width,
                                            const std::byte* record, const float* probabilities,
                                            int rows, float* accumulators, const std::byte* next) {
  if (format.granularity != Granularity::per_token || !covers_affine(format, Side::value, width)) {
    return portable::values_affine(format, width, record, probabilities, rows, accumulators, next);
  }
  const ReadFormat f(format);
  const AffineParts parts(f, Side::value, width, record);
  switch (f.bits) {
    case 1:
      return values_bits<1>(f, width, parts, probabilities, rows, accumulators, next);
    case 2:
      return values_bits<2>(f, width, parts, probabilities, rows, accumulators, next);
    case 3:
      return values_bits<3>(f, width, parts, probabilities, rows, accumulators, next);
    case 4:
      return values_bits<4>(f, width, parts, probabilities, rows, accumulators, next);
    default:
      return values_bits<8>(f, width, parts, probabilities, rows, accumulators, next);
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse

#endif
