/// Error-shaped trellis: what shaped.hpp does, with codes that stand for twice as many levels. A
/// record is as large as the grid's of as many bits; of normal numbers the error is 1.2 dB less at
/// 2 bits.
///
/// The basis, the order of channels, the errors passed on and the factor are those of ShapedGrid. A
/// code's level depends on the codes of the two channels after it, which were rounded before
/// (trellis.hpp), and which of them are taken is found with one survivor a state of the trellis:
/// each carries the errors that it has passed on, and of those that meet in a state the one of the
/// least weighted error goes on.
///
/// Departs from Marcellin and Fischer: the metric is that of a calibration, so that what a path
/// adds depends on all of it, and the cheapest path may be lost; without a calibration it is
/// theirs. Paths begin in state 0, which costs 1.7 % of the error at 64 channels.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/multiply_add.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"
#include "terse/quant/shaped_codec.hpp"
#include "terse/quant/trellis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct ShapedTrellisSpec {
  int bits = 2;
};

/// The codec. Sections: codes by code_place, factors `[token]` in fp16.
template <ShapedTrellisSpec S>
struct ShapedTrellis : ShapedCodec {
  static_assert(S.bits >= 1 && S.bits <= 4, "terse::ShapedTrellis: bits must be 1, 2, 3 or 4.");

  static constexpr ShapedTrellisSpec trellis_spec = S;
  using Levels = Trellis<S.bits>;

 private:
  /// Whose record it has.
  using Grid = AffineGroup<AffineSpec{.bits = S.bits, .rule = ScaleRule::least_squares}>;

 public:
  [[nodiscard]] static Status supports(Side side, int width) noexcept {
    if (S.bits == 1 && side == Side::key) {
      return error(StatusCode::unsupported,
                   "terse::ShapedTrellis: codes of 1 bit are for values only; give keys 2 bits");
    }
    if (width > max_width) {
      return error(StatusCode::unsupported, "terse::ShapedTrellis: width is limited to 256", width);
    }
    return {};
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    return Grid::record(side, width);
  }
  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    Grid::copy_token(context, from, from_token, to, to_token);
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    const auto code = [&](int c) {
      return c >= context.width
                 ? 0u
                 : load_code<S.bits>(block,
                                     code_place<S.bits>(context.side, context.width, token, c));
    };
    return Levels::level(Levels::index_of(code(channel), code(channel + 1), code(channel + 2))) *
           scale_of(context, block, token);
  }
  /// What the levels of a token are multiplied by.
  TERSE_HOST_DEVICE static float scale_of(const CodecContext& context, const std::byte* block,
                                          int token) noexcept {
    return detail::load_half(block + Grid::scales_offset(context.side, context.width), token);
  }

  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    const int width = context.width;
    const CalibrationLayout at{width};
    const float* parts = context.calibration;
    const float* weight = parts == nullptr ? nullptr : parts + at.weight();
    const float* feedback = parts == nullptr ? nullptr : parts + at.feedback();
    const Size size = size_of(sum_of_products(x, x, width), width);
    float u[max_width] = {};  // for compilers that see widths of 0
    for (int c = 0; c < width; ++c) u[c] = rounded_product(x[c], size.inverse);
    // The search's memory is used again for the gain.
    float work[Levels::num_states][max_width];
    std::uint8_t history[Levels::num_states * max_width], codes[max_width] = {};
    Levels::find_path(u, width, weight, feedback, work[0], max_width, history, codes);
    float* values = work[0];
    for (int c = 0; c < width; ++c) {
      values[c] = Levels::level(Levels::index_of(codes[c], c + 1 < width ? codes[c + 1] : 0u,
                                                 c + 2 < width ? codes[c + 2] : 0u));
      store_code<S.bits>(block, code_place<S.bits>(context.side, width, token, c), codes[c]);
    }
    float gain;
    if (parts == nullptr) {
      gain = norm_gain(sum_of_products(u, u, width), sum_of_products(values, values, width));
    } else {
      const float *seen = work[1], *kept = work[2];
      as_it_counts(feedback, width, u, work[1]);
      as_it_counts(feedback, width, values, work[2]);
      float* weighted = work[3];
      for (int c = 0; c < width; ++c) weighted[c] = rounded_product(seen[c], weight[c]);
      gain = unbiased_gain(sum_of_products(weighted, seen, width),
                           sum_of_products(weighted, kept, width));
    }
    store_factor(context, token, gain, size, block);
  }

  // --- the steps of encoding, which kernels take with threads that share a vector -------------

  /// The gain that keeps the norm, of sums of squares of a vector and of its levels.
  TERSE_HOST_DEVICE static float norm_gain(float energy, float level_energy) noexcept {
    // A vector whose size is infinite is 0 when divided by it.
    if (energy == 0.0f) return 1.0f;
    return rounded_quotient(rounded_root(energy), rounded_root(level_energy));
  }
  TERSE_HOST_DEVICE static void store_factor(const CodecContext& context, int token, float gain,
                                             const Size& size, std::byte* block) noexcept {
    detail::store_half(block + Grid::scales_offset(context.side, context.width), token,
                       to_f16_saturating(rounded_product(gain, size.rms)));
  }

 private:
  /// seen[j] = x[j] + sum over i > j of feedback[i][j] * x[i].
  TERSE_HOST_DEVICE static void as_it_counts(const float* feedback, int width, const float* x,
                                             float* seen) noexcept {
    for (int c = 0; c < width; ++c) seen[c] = x[c];
    for (int j = width - 1; j >= 0; --j) {
      add_scaled(x[j], feedback + std::ptrdiff_t{j} * width, j, seen);
    }
  }
};

/// Served by kernels that follow the path: codes and decodes as ShapedTrellis does.
template <class C>
concept TrellisCodec =
    Codec<C> && !AffineCodec<C> && std::derived_from<C, ShapedTrellis<C::trellis_spec>> &&
    encodes_and_decodes_as<C, ShapedTrellis<C::trellis_spec>>;

/// The policy: keys and values on shaped trellises, and a tail. PolicyConfig::calibration is that
/// of the model (Calibration).
template <ShapedSpec S>
struct TrellisShaped {
  static_assert(S.key_bits >= 2,
                "terse::TrellisShaped: key_bits must be 2, 3 or 4; only values have codes of 1 "
                "bit.");
  static_assert(
      !S.searches_step,
      "terse::TrellisShaped: steps are searched for grids only; leave searches_step out.");
  using key_codec = ShapedTrellis<ShapedTrellisSpec{.bits = S.key_bits}>;
  using value_codec = ShapedTrellis<ShapedTrellisSpec{.bits = S.value_bits}>;
  static constexpr TailSpec tail = S.tail;
};

using ShapedTrellis2 = TrellisShaped<ShapedSpec{.key_bits = 2, .value_bits = 2}>;
using ShapedTrellis3 = TrellisShaped<ShapedSpec{.key_bits = 3, .value_bits = 3}>;
using ShapedTrellis4 = TrellisShaped<ShapedSpec{.key_bits = 4, .value_bits = 4}>;
using ShapedTrellis3K2V = TrellisShaped<ShapedSpec{.key_bits = 3, .value_bits = 2}>;
using ShapedTrellis2K1V = TrellisShaped<ShapedSpec{.key_bits = 2, .value_bits = 1}>;
static_assert(ShapedTrellis2::key_codec::record(Side::key, 64).bytes * 8 == 64 * 64 * 2 + 64 * 16);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
