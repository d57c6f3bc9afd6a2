/// Error-shaped grid: the codes of a vector are chosen so that its error falls where queries do not
/// look (keys) or where the output projection does not (values). What is stored and how it decodes
/// is a plain grid of 2^bits levels with one fp16 factor per token: bits + 16/width bits per
/// element.
///
/// A vector less its mean is turned to a basis (rotated, partly whitened) and divided by its root
/// mean square. Channels are rounded one after another, the last first; each takes on the weighted
/// errors of those before it. That is successive cancellation as in GPTQ (arXiv 2210.17323, section
/// 3) and LDLQ (QuIP, arXiv 2307.13304, section 3), there for weights. The factor is then the one
/// that leaves the vector's length, in the metric that counts, unbiased.
///
/// Without calibration the basis is HadamardBasis, nothing is shaped, and the factor keeps the
/// vector's norm.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/multiply_add.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/calibration.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"
#include "terse/quant/shaped_codec.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct ShapedGridSpec {
  int bits = 2;
  /// Tokens are rounded with 0.8, 0.9, 1, 1.1 and 1.2 of the step; the one whose error counts least
  /// is kept. Five times the rounding; stored and decoded alike. With a calibration only.
  bool searches_step = false;
};

/// The codec.
template <ShapedGridSpec S>
struct ShapedGrid : ShapedCodec {
  static_assert(S.bits >= 1 && S.bits <= 4, "terse::ShapedGrid: bits must be 1, 2, 3 or 4.");

 private:
  using Grid = AffineGroup<AffineSpec{.bits = S.bits, .rule = ScaleRule::least_squares}>;

 public:
  static constexpr AffineFormat affine_format = Grid::affine_format;

  /// Distance of levels, in standard deviations: the best uniform grid for normal numbers.
  static constexpr float step = S.bits == 1   ? 1.5958f
                                : S.bits == 2 ? 0.9957f
                                : S.bits == 3 ? 0.5860f
                                              : 0.3352f;

  [[nodiscard]] static Status supports(Side side, int width) noexcept {
    if (S.bits == 1 && side == Side::key) {
      return error(StatusCode::unsupported,
                   "terse::ShapedGrid: codes of 1 bit are for values only; give keys 2 bits");
    }
    if (width > max_width) {
      return error(StatusCode::unsupported, "terse::ShapedGrid: width is limited to 256", width);
    }
    return {};
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    return Grid::record(side, width);
  }
  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    return Grid::decode(context, block, token, channel);
  }
  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    Grid::copy_token(context, from, from_token, to, to_token);
  }

  TERSE_HOST_DEVICE static constexpr int tokens_at_once(Side side) noexcept {
    return code_tokens_at_once<S.bits>(side);
  }
  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    const int width = context.width;
    const Size size = size_of(sum_of_products(x, x, width), width);
    float u[max_width] = {}, levels[max_width] = {};  // for compilers that see widths of 0
    for (int c = 0; c < width; ++c) u[c] = rounded_product(x[c], size.inverse);
    float gain;
    if (context.calibration == nullptr) {
      gain = round_plainly(u, width, levels);
    } else if constexpr (S.searches_step) {
      gain = round_with_best_step(context, u, levels);
    } else {
      gain = round_shaped(context, u, levels).gain;
    }
    for (int c = 0; c < width; ++c) {
      store_code<S.bits>(block, code_place<S.bits>(context.side, width, token, c),
                         static_cast<unsigned>(levels[c] + affine_format.centre));
    }
    store_factor(context, token, gain, size, block);
  }

  // --- the steps of encoding, which kernels take with threads that share a vector -------------

  /// What makes a codec one whose vectors kernels round by many threads. They try one step.
  TERSE_HOST_DEVICE static float level_of(float u) noexcept requires(!S.searches_step) {
    return nearest_level(u);
  }
  /// The level of the grid nearest to `u`, in steps: a code less the centre.
  TERSE_HOST_DEVICE static float nearest_level(float u) noexcept {
    const float shifted = fused_multiply_add(u, 1.0f / step, affine_format.centre);
    const float top = static_cast<float>(Grid::top_code);
    return whole_half_even(smaller(larger(shifted, 0.0f), top)) - affine_format.centre;
  }
  /// The gain that keeps the norm, of sums of squares of a vector and of its levels.
  TERSE_HOST_DEVICE static float norm_gain(float energy, float level_energy) noexcept {
    return rounded_quotient(rounded_root(energy),
                            rounded_product(step, rounded_root(level_energy)));
  }
  TERSE_HOST_DEVICE static void store_factor(const CodecContext& context, int token, float gain,
                                             const Size& size, std::byte* block) noexcept {
    detail::store_half(block + Grid::scales_offset(context.side, context.width), token,
                       to_f16_saturating(rounded_product(rounded_product(gain, step), size.rms)));
  }

 private:
  /// Each number to its nearest level. Returns the factor that keeps the norm.
  TERSE_HOST_DEVICE static float round_plainly(const float* u, int width, float* levels) noexcept {
    for (int c = 0; c < width; ++c) levels[c] = nearest_level(u[c]);
    return norm_gain(sum_of_products(u, u, width), sum_of_products(levels, levels, width));
  }

  /// The unbiased factor, and what of a vector's squared length, as it counts, is lost with it.
  struct Rounded {
    float gain, error;
  };

  /// The same with each of the steps. Returns the factor of that which loses least.
  TERSE_HOST_DEVICE static float round_with_best_step(const CodecContext& context, const float* u,
                                                      float* levels) noexcept {
    constexpr float scales[] = {0.8f, 0.9f, 1.0f, 1.1f, 1.2f};
    const int width = context.width;
    float best = 0.0f, gain = 1.0f, scaled[max_width], tried[max_width] = {};
    for (int i = 0; i < 5; ++i) {
      const float inverse = rounded_quotient(1.0f, scales[i]);
      for (int c = 0; c < width; ++c) scaled[c] = rounded_product(u[c], inverse);
      const Rounded own = round_shaped(context, scaled, tried);
      const float error = rounded_product(own.error, rounded_product(scales[i], scales[i]));
      if (i > 0 && !(error < best)) continue;
      best = error;
      gain = rounded_product(own.gain, scales[i]);
      for (int c = 0; c < width; ++c) levels[c] = tried[c];
    }
    return gain;
  }

  /// Successive cancellation.
  TERSE_HOST_DEVICE static Rounded round_shaped(const CodecContext& context, const float* u,
                                                float* levels) noexcept {
    const int width = context.width;
    const CalibrationLayout at{width};
    const float* weight = context.calibration + at.weight();
    float passed[max_width] = {};  // sum over i > j of feedback[i][j] * error[i]
    float seen[max_width];         // the vector as it counts: u[j] + sum of feedback[i][j] * u[i]
    float kept[max_width];         // the same of what is stored
    for (int c = 0; c < width; ++c) seen[c] = u[c];
    for (int j = width - 1; j >= 0; --j) {
      const float target = u[j] + passed[j];
      levels[j] = nearest_level(target);
      const float value = rounded_product(levels[j], step);
      kept[j] = seen[j] - (target - value);
      const float* row = context.calibration + at.feedback() + std::ptrdiff_t{j} * width;
      add_scaled(u[j] - value, row, j, passed);
      add_scaled(u[j], row, j, seen);
    }
    float weighted[max_width] = {};  // as above
    for (int c = 0; c < width; ++c) weighted[c] = rounded_product(seen[c], weight[c]);
    const float length = sum_of_products(weighted, seen, width);
    const float along = sum_of_products(weighted, kept, width);
    const float gain = unbiased_gain(length, along);
    float error = 0.0f;
    if constexpr (S.searches_step) {
      for (int c = 0; c < width; ++c) {
        seen[c] = fused_multiply_add(-gain, kept[c], seen[c]);
        weighted[c] = rounded_product(seen[c], weight[c]);
      }
      error = sum_of_products(weighted, seen, width);
    }
    return {gain, error};
  }
};

/// The policy: keys and values on shaped grids, and a tail. PolicyConfig::calibration is that of
/// the model (Calibration).
template <ShapedSpec S>
struct Shaped {
  static_assert(S.key_bits >= 2,
                "terse::Shaped: key_bits must be 2, 3 or 4; only values have codes of 1 bit.");
  using key_codec =
      ShapedGrid<ShapedGridSpec{.bits = S.key_bits, .searches_step = S.searches_step}>;
  using value_codec =
      ShapedGrid<ShapedGridSpec{.bits = S.value_bits, .searches_step = S.searches_step}>;
  static constexpr TailSpec tail = S.tail;
};

using Shaped2 = Shaped<ShapedSpec{.key_bits = 2, .value_bits = 2}>;
using Shaped3 = Shaped<ShapedSpec{.key_bits = 3, .value_bits = 3}>;
using Shaped4 = Shaped<ShapedSpec{.key_bits = 4, .value_bits = 4}>;
using Shaped3K2V = Shaped<ShapedSpec{.key_bits = 3, .value_bits = 2}>;
using Shaped2K1V = Shaped<ShapedSpec{.key_bits = 2, .value_bits = 1}>;
/// For caches without a tail: the first four tokens exact, all others with the best step.
using Shaped4Searched = Shaped<ShapedSpec{
    .key_bits = 4, .value_bits = 4, .tail{.sink_tokens = 4}, .searches_step = true}>;
static_assert(Shaped2::key_codec::record(Side::key, 64).bytes * 8 == 64 * 64 * 2 + 64 * 16);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
