/// Integer codes with a scale per group of numbers: the arithmetic shared by KIVI, int8, int4 and
/// llama.cpp's q8_0 and q4_0, which are aliases of it in files of their own.
///
///   x is stored as code;  decode(code) = (code - centre) * scale + group_min
///
/// group_min is an offset in value units and exists for ScaleRule::min_max only.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/core/status.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// How scale (and group_min) are found from a group x.
enum class ScaleRule : std::uint8_t {
  /// scale = (max - min) / (2^bits - 1), group_min = min; codes from the rounded fp16 parameters.
  min_max,
  /// scale = max|x| / (2^(bits-1) - 1), centre 2^(bits-1); codes from the rounded fp16 scale.
  abs_max,
  /// As abs_max, but codes are found before the scale is rounded to fp16, ties away from zero.
  abs_max_wide,
  /// scale = -x[argmax|x|] / 2^(bits-1), centre 2^(bits-1): the largest magnitude is exact.
  signed_max_wide,
  /// Grid of 2^bits levels without a zero, centre 2^(bits-1) - 1/2; scale = the
  /// least-squares factor for the codes of that one of a few fractions of the covering step that
  /// leaves the least error.
  least_squares,
};

/// What a kernel must know to read affine blocks. Codecs that declare one as `affine_format` and
/// store their codes by code_place, then scales, then group minima, are served by the same kernels.
struct AffineFormat {
  int bits = 0;
  Granularity granularity = Granularity::per_token;
  int group = 0;     ///< channels (per_token; 0: all) or tokens (per_channel) that share a scale
  float centre = 0;  ///< subtracted from codes
  bool has_min = false;  ///< a section of group minima follows the scales
};

template <class C>
concept AffineCodec = Codec<C> && requires {
  { C::affine_format } -> std::convertible_to<AffineFormat>;
};

/// Scales `[channel group, token]` (per_token) or `[token group, channel]` (per_channel).
TERSE_HOST_DEVICE constexpr int affine_groups(const AffineFormat& f, int width) noexcept {
  if (f.granularity == Granularity::per_channel) return block_tokens / f.group;
  return f.group == 0 ? 1 : ceil_div(width, f.group);
}

TERSE_HOST_DEVICE constexpr int affine_params(const AffineFormat& f, int width) noexcept {
  return affine_groups(f, width) *
         (f.granularity == Granularity::per_channel ? width : block_tokens);
}

TERSE_HOST_DEVICE constexpr int affine_param_index(const AffineFormat& f, int width, int token,
                                                   int channel) noexcept {
  if (f.granularity == Granularity::per_channel) return token / f.group * width + channel;
  return (f.group == 0 ? 0 : channel / f.group) * block_tokens + token;
}

struct AffineSpec {
  int bits = 4;
  Granularity granularity = Granularity::per_token;
  int group = 0;  ///< channels (per_token; 0: the whole width) or tokens (per_channel) per scale
  ScaleRule rule = ScaleRule::min_max;
};

namespace detail {

TERSE_HOST_DEVICE inline void store_half(std::byte* section, int index, F16 half) noexcept {
#if defined(__CUDA_ARCH__)  // a copy of two bytes would be two stores
  reinterpret_cast<F16*>(section)[index] = half;
#else
  std::memcpy(section + static_cast<std::size_t>(index) * sizeof half, &half, sizeof half);
#endif
}
TERSE_HOST_DEVICE inline float load_half(const std::byte* section, int index) noexcept {
  F16 half;
  std::memcpy(&half, section + static_cast<std::size_t>(index) * sizeof half, sizeof half);
  return to_float(half);
}

}  // namespace detail

template <AffineSpec S>
struct AffineGroup {
  static_assert(
      S.bits == 1 || S.bits == 2 || S.bits == 3 || S.bits == 4 || S.bits == 8,
      "terse::AffineGroup: bits must be 1, 2, 3, 4 or 8: there is no stored order for others.");
  static_assert(S.bits != 1 || S.rule == ScaleRule::least_squares,
                "terse::AffineGroup: of 1 bit there are only the two levels of "
                "ScaleRule::least_squares.");
  static_assert(S.bits != 1 || S.granularity == Granularity::per_token,
                "terse::AffineGroup: codes of 1 bit are for values with a scale per token; use "
                "Granularity::per_token.");
  static_assert(S.granularity == Granularity::per_token ||
                    (S.group > 0 && block_tokens % (S.group > 0 ? S.group : 1) == 0),
                "terse::AffineGroup: a per-channel group must divide the block of 64 tokens, or it "
                "would straddle blocks; use 16, 32 or 64.");
  static_assert(S.group >= 0, "terse::AffineGroup: group is negative.");

  static constexpr int top_code = (1 << S.bits) - 1;
  static constexpr Granularity granularity = S.granularity;
  static constexpr AffineFormat affine_format{.bits = S.bits,
                                              .granularity = S.granularity,
                                              .group = S.group,
                                              .centre = S.rule == ScaleRule::min_max ? 0.0f
                                                        : S.rule == ScaleRule::least_squares
                                                            ? static_cast<float>(top_code) / 2.0f
                                                            : static_cast<float>(1 << (S.bits - 1)),
                                              .has_min = S.rule == ScaleRule::min_max};

  /// Keys of 1 bit have no kernels. Codes of more bits serve either side at any width.
  [[nodiscard]] static constexpr Status supports(Side side, int) noexcept requires(S.bits == 1) {
    if (side == Side::key) {
      return error(StatusCode::unsupported,
                   "terse::AffineGroup: codes of 1 bit are for values only; give keys 2 bits");
    }
    return {};
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    constexpr AffineFormat format = affine_format;  // device code may not bind to the static one
    Record r;
    r.add(codes_bytes<S.bits>(side, width));
    const auto params = static_cast<std::size_t>(affine_params(format, width));
    r.add(params * sizeof(F16));
    if (affine_format.has_min) r.add(params * sizeof(F16));
    return r;
  }

  /// Offsets of `record`'s sections, whose array a device would keep in memory.
  TERSE_HOST_DEVICE static constexpr std::size_t scales_offset(Side side, int width) noexcept {
    return round_up(codes_bytes<S.bits>(side, width), section_align_bytes);
  }
  TERSE_HOST_DEVICE static constexpr std::size_t minima_offset(int width,
                                                               std::size_t scales) noexcept {
    constexpr AffineFormat format = affine_format;
    const auto params = static_cast<std::size_t>(affine_params(format, width));
    return round_up(scales + params * sizeof(F16), section_align_bytes);
  }

  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept
      requires(S.granularity == Granularity::per_token) {
    const int group = S.group == 0 ? context.width : S.group;
    for (int c = 0; c < context.width; c += group) {
      const int count = c + group <= context.width ? group : context.width - c;
      encode_group(context, x + c, 1, count, token, c, block);
    }
  }

  TERSE_HOST_DEVICE static void encode_block(const CodecContext& context, const float* x,
                                             std::byte* block) noexcept
      requires(S.granularity == Granularity::per_channel) {
    for (int t = 0; t < block_tokens; t += S.group) {
      for (int c = 0; c < context.width; ++c) {
        encode_group(context, x + static_cast<std::size_t>(t * context.width + c),
                     static_cast<std::size_t>(context.width), S.group, t, c, block);
      }
    }
  }

  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept
      requires(S.granularity == Granularity::per_token) {
    for (int c = 0; c < context.width; ++c) {
      store_code<S.bits>(
          to, code_place<S.bits>(context.side, context.width, to_token, c),
          load_code<S.bits>(from, code_place<S.bits>(context.side, context.width, from_token, c)));
    }
    constexpr AffineFormat format = affine_format;
    const Record r = record(context.side, context.width);
    for (int section = 1; section < r.num_sections; ++section) {
      const std::size_t offset = r.sections[section].offset_bytes;
      for (int g = 0; g < affine_groups(format, context.width); ++g) {
        std::memcpy(to + offset + static_cast<std::size_t>(g * block_tokens + to_token) * 2,
                    from + offset + static_cast<std::size_t>(g * block_tokens + from_token) * 2, 2);
      }
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    constexpr AffineFormat format = affine_format;
    const unsigned code =
        load_code<S.bits>(block, code_place<S.bits>(context.side, context.width, token, channel));
    const int i = affine_param_index(format, context.width, token, channel);
    const std::size_t scales = scales_offset(context.side, context.width);
    const float scale = detail::load_half(block + scales, i);
    const float centred = static_cast<float>(code) - affine_format.centre;
    if constexpr (affine_format.has_min) {
      const std::size_t minima = minima_offset(context.width, scales);
      return fused_multiply_add(centred, scale, detail::load_half(block + minima, i));
    } else {
      return centred * scale;
    }
  }

  /// What codes are computed with: `v` becomes (v - offset) / divisor steps.
  struct Step {
    float divisor = 0.0f;
    float inverse = 0.0f;  ///< 1 / divisor, rounded; 0 where the divisor counts as 0
    float offset = 0.0f;   ///< group_min as decode will read it
  };

  /// Parameters of a group.
  struct Group {
    Step step{};
    F16 scale{};    ///< as stored
    F16 minimum{};  ///< as stored, where there is one
  };

  TERSE_HOST_DEVICE static Step make_step(float divisor, float offset = 0.0f) noexcept {
    // Of llama.cpp's formats, divisors that fp16 stores as zero give zero.
    constexpr bool wide = S.rule == ScaleRule::signed_max_wide || S.rule == ScaleRule::abs_max_wide;
    const bool is_zero = wide ? absolute(divisor) < 1e-30f : divisor == 0.0f;
    return {divisor, is_zero ? 0.0f : rounded_reciprocal(divisor), offset};
  }

  static constexpr bool needs_largest = S.rule == ScaleRule::signed_max_wide;

  /// What parameters are found from; in whichever order the numbers are looked at.
  struct Extremes {
    float low = 0.0f;      ///< never -0
    float high = 0.0f;     ///< never -0
    float largest = 0.0f;  ///< the first number of the largest magnitude, where it is needed
    [[nodiscard]] TERSE_HOST_DEVICE float peak() const noexcept {
      return -low > high ? -low : high;
    }
  };

  TERSE_HOST_DEVICE static Extremes find_extremes(const float* x, std::size_t stride,
                                                  int count) noexcept {
    float low = x[0], high = x[0];
    for (int i = 1; i < count; ++i) {
      const float v = x[static_cast<std::size_t>(i) * stride];
      low = smaller(v, low);
      high = larger(v, high);
    }
    Extremes e{low + 0.0f, high + 0.0f, 0.0f};
    if constexpr (needs_largest) {
      int first = 0;
      while (absolute(x[static_cast<std::size_t>(first) * stride]) < e.peak()) ++first;
      e.largest = x[static_cast<std::size_t>(first) * stride];
    }
    return e;
  }

  /// Parameters of the `count` numbers `x[i * stride]`, whose extremes are `e`.
  TERSE_HOST_DEVICE static Group find_group(const Extremes& e, const float* x, std::size_t stride,
                                            int count) noexcept {
    // Quotients below the normal numbers are 0 in fp16, however they are rounded.
    Group g;
    if constexpr (S.rule == ScaleRule::min_max) {
      g.minimum = to_f16_saturating(e.low);
      g.scale =
          to_f16_saturating(quotient_by_constant(e.high - e.low, static_cast<float>(top_code)));
      g.step = make_step(to_float(g.scale), to_float(g.minimum));
    } else if constexpr (S.rule == ScaleRule::abs_max) {
      g.scale = to_f16_saturating(
          quotient_by_constant(e.peak(), static_cast<float>((1 << (S.bits - 1)) - 1)));
      g.step = make_step(to_float(g.scale));
    } else if constexpr (S.rule == ScaleRule::abs_max_wide) {
      g.step = make_step(rounded_quotient(e.peak(), static_cast<float>((1 << (S.bits - 1)) - 1)));
      g.scale = to_f16_saturating(g.step.divisor);
    } else if constexpr (S.rule == ScaleRule::signed_max_wide) {
      g.step = make_step(rounded_quotient(e.largest, -static_cast<float>(1 << (S.bits - 1))));
      g.scale = to_f16_saturating(g.step.divisor);
    } else {
      g = search_group(e.peak(), x, stride, count);
    }
    return g;
  }

  // --- ScaleRule::least_squares, in pieces that threads may share. A sum over x [count] is made of
  // 32 partial ones: the i-th of x[i], x[i + 32], ... in this order. Neighbours among them are
  // added, then neighbours among the results, until one is left.

  static constexpr bool searches_step = S.rule == ScaleRule::least_squares;
  static constexpr int num_steps = 6;      ///< candidates
  static constexpr int num_partials = 32;  ///< partial sums of a sum

  /// The k-th fraction of the step that covers `peak`; 0 where all numbers are as good as 0.
  TERSE_HOST_DEVICE static float candidate_divisor(float peak, int k) noexcept {
    constexpr float fractions[num_steps] = {1.0f, 0.92f, 0.84f, 0.76f, 0.68f, 0.6f};
    const float covering = rounded_quotient(peak, static_cast<float>(top_code) / 2.0f);
    return covering > 1e-30f ? rounded_product(covering, fractions[k]) : 0.0f;
  }

  /// How the codes of a step fit the numbers of a group. A level is a code less the centre, in half
  /// steps: an odd number.
  struct Fit {
    float dot = 0.0f;   ///< sum of number * level
    float norm = 0.0f;  ///< sum of level * level
  };
  /// N of the partial sums. Those of squares are whole numbers, and exact below 2^24: any M do
  /// where codes have 4 bits or fewer, for streams of 4096 channels.
  template <int N, int M = N>
  struct PartialFits {
    float dot[N] = {};
    float norm[M] = {};
  };

  /// Adds a number to the i-th partial sums of a step.
  template <int N, int M>
  TERSE_HOST_DEVICE static void add_to_fit(float v, float inverse_step, PartialFits<N, M>& fits,
                                           int i) noexcept {
    const float level =
        level_of(whole_half_even(rounded_product(v, inverse_step) + affine_format.centre));
    fits.norm[i % M] += level * level;  // fused or not: the product is exact
    fits.dot[i] += rounded_product(v, level);
  }
  /// Sums of neighbouring partial sums, N and M powers of two.
  template <int N, int M>
  TERSE_HOST_DEVICE static Fit sum_of(const PartialFits<N, M>& fits) noexcept {
    return {sum_of_neighbours(fits.dot), sum_of_neighbours(fits.norm)};
  }
  /// Fits of `steps` to the `count` numbers `x[i * stride]`.
  TERSE_HOST_DEVICE static void fit_steps(const float* x, std::size_t stride, int count,
                                          const Step (&steps)[num_steps],
                                          Fit (&fits)[num_steps]) noexcept {
    PartialFits<num_partials> partials[num_steps];
    for (int begin = 0; begin < count; begin += num_partials) {
      const int own = count - begin < num_partials ? count - begin : num_partials;
      float gathered[num_partials];
      const float* v = x + begin;
      if (stride != 1) {
        for (int i = 0; i < own; ++i) gathered[i] = x[static_cast<std::size_t>(begin + i) * stride];
        v = gathered;
      }
      for (int k = 0; k < num_steps; ++k) {
        if (own == num_partials) {
          add_all_to_fit<true>(v, own, steps[k].inverse, partials[k]);
        } else {
          add_all_to_fit<false>(v, own, steps[k].inverse, partials[k]);
        }
      }
    }
    for (int k = 0; k < num_steps; ++k) fits[k] = sum_of(partials[k]);
  }
  /// The part of the numbers' energy that levels times their best factor take up; the rest is
  /// error. The step of the largest gain is taken, the first of equals. 0 without numbers. Where a
  /// square overflows or vanishes, fp16 cannot hold the factor either.
  TERSE_HOST_DEVICE static float gain(const Fit& fit) noexcept {
    return fit.norm == 0.0f ? 0.0f : rounded_quotient(rounded_product(fit.dot, fit.dot), fit.norm);
  }
  /// The factor that brings the codes of `step` nearest to the numbers, as stored.
  TERSE_HOST_DEVICE static F16 best_factor(const Fit& fit, const Step& step) noexcept {
    return step.divisor == 0.0f ? F16{}
                                : to_f16_saturating(rounded_quotient(2.0f * fit.dot, fit.norm));
  }

  /// Code of a number.
  TERSE_HOST_DEVICE static unsigned code_of(float v, const Step& step) noexcept {
    return encode(v, step);
  }

  /// The same before it is limited to the grid's ends, in the lower 16 bits of a word, for numbers
  /// that have fewer steps. `step` must be that of a group with the number.
  TERSE_HOST_DEVICE static std::uint32_t unlimited_code(float v, const Step& step) noexcept
      requires(S.rule == ScaleRule::min_max || S.rule == ScaleRule::abs_max) {
    return low_bits_half_even(steps_of(v, step));
  }

  /// Stores the parameters of the group of (token, channel).
  TERSE_HOST_DEVICE static void store_group(const CodecContext& context, int token, int channel,
                                            const Group& g, std::byte* block) noexcept {
    constexpr AffineFormat format = affine_format;
    const std::size_t scales = scales_offset(context.side, context.width);
    const int param = affine_param_index(format, context.width, token, channel);
    detail::store_half(block + scales, param, g.scale);
    if constexpr (affine_format.has_min) {
      detail::store_half(block + minima_offset(context.width, scales), param, g.minimum);
    }
  }

 private:
  /// Level of a whole number, of the nearest end where the grid does not reach it. Exact.
  TERSE_HOST_DEVICE static float level_of(float whole) noexcept {
    return std::fabs(whole) - std::fabs(whole - static_cast<float>(top_code));
  }

  /// add_to_fit of `v [count]`, each to partial sums of its own, in loops that the host vectorises.
  /// `Whole`: there is one for each partial sum.
  template <bool Whole>
  TERSE_HOST_DEVICE static void add_all_to_fit(const float* v, int count, float inverse_step,
                                               PartialFits<num_partials>& fits) noexcept {
    if constexpr (Whole) count = num_partials;
#if defined(__CUDA_ARCH__)
    for (int i = 0; i < count; ++i) add_to_fit(v[i], inverse_step, fits, i);
#else
    float terms[num_partials] = {};
    for (int i = 0; i < count; ++i) terms[i] = v[i] * inverse_step;
    settle(terms);
    for (int i = 0; i < count; ++i) terms[i] += affine_format.centre;
    make_whole_half_even(terms);
    for (int i = 0; i < count; ++i) {
      const float level = level_of(terms[i]);
      fits.norm[i] += level * level;
      terms[i] = v[i] * level;
    }
    settle(terms);
    for (int i = 0; i < count; ++i) fits.dot[i] += terms[i];
#endif
  }

  TERSE_HOST_DEVICE static Group search_group(float peak, const float* x, std::size_t stride,
                                              int count) noexcept {
    Step steps[num_steps];
    for (int k = 0; k < num_steps; ++k) steps[k] = make_step(candidate_divisor(peak, k));
    Fit fits[num_steps];
    fit_steps(x, stride, count, steps, fits);
    float gains[num_steps];
    for (int k = 0; k < num_steps; ++k) gains[k] = gain(fits[k]);
    int best = 0;
    for (int k = 1; k < num_steps; ++k) {
      if (gains[k] > gains[best]) best = k;
    }
    return {steps[best], best_factor(fits[best], steps[best]), {}};
  }

  /// Encodes `count` numbers `x[i * stride]` that share one scale; the first lies at (token,
  /// channel), the others follow along the grouped axis.
  TERSE_HOST_DEVICE static void encode_group(const CodecContext& context, const float* x,
                                             std::size_t stride, int count, int token, int channel,
                                             std::byte* block) noexcept {
    const Group g = find_group(find_extremes(x, stride, count), x, stride, count);
    store_group(context, token, channel, g, block);
    for (int i = 0; i < count; ++i) {
      const int t = S.granularity == Granularity::per_channel ? token + i : token;
      const int c = S.granularity == Granularity::per_channel ? channel : channel + i;
      store_code<S.bits>(block, code_place<S.bits>(context.side, context.width, t, c),
                         code_of(x[static_cast<std::size_t>(i) * stride], g.step));
    }
  }

  TERSE_HOST_DEVICE static unsigned encode(float v, const Step& step) noexcept {
    if constexpr (S.rule == ScaleRule::signed_max_wide) {
      // llama.cpp adds the centre and one half, then truncates.
      const float shifted = rounded_product(v, step.inverse) + (affine_format.centre + 0.5f);
      return static_cast<unsigned>(clamp(static_cast<int>(shifted), 0, top_code));
    } else if constexpr (S.rule == ScaleRule::abs_max_wide) {
      const float scaled = rounded_product(v, step.inverse);
      const int whole = static_cast<int>(scaled);
      const float rest = scaled - static_cast<float>(whole);
      const int rounded = whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
      return static_cast<unsigned>(
          clamp(rounded + static_cast<int>(affine_format.centre), 0, top_code));
    } else if constexpr (S.rule == ScaleRule::least_squares) {
      const float shifted = rounded_product(v, step.inverse) + affine_format.centre;
      return static_cast<unsigned>(
          round_half_even(smaller(larger(shifted, 0.0f), static_cast<float>(top_code))));
    } else {
      // Clamped before rounding: a saturated scale may leave numbers far outside the grid.
      const float steps = steps_of(v, step);
      return static_cast<unsigned>(
          round_half_even(smaller(larger(steps, 0.0f), static_cast<float>(top_code))));
    }
  }

  /// Steps from code 0 to a number. Without a step there are 0 of it, which is the centre.
  TERSE_HOST_DEVICE static float steps_of(float v, const Step& step) noexcept {
    const float steps = quotient_by_inverse(v - step.offset, step.divisor, step.inverse);
    return affine_format.centre != 0.0f ? steps + affine_format.centre : steps;
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
