/// KVarN: Variance-Normalized KV-Cache Quantization Mitigates Error Accumulation in Reasoning Tasks
/// (arXiv 2606.03458): a block in a basis rotated by Hadamard matrices, with scales along both
/// axes, under which tokens and channels vary alike, and min-max codes: keys per channel over the
/// block's tokens, values per token over its channels.
///
///   keys    decoded  (code * step[channel] + zero[channel]) * scale[token]
///   values  decoded  (code * step[token] + zero[token]) * scale[channel]
///
/// Min-max codes of a vector do not change with a factor on all of it, so of the two scales that
/// the search finds one is part of step and zero, as the paper stores it, and codes are found from
/// numbers that are divided by the other alone, as it is stored.
///
/// Departs from the paper: a tile is the block of 64 tokens and one head's channels, not 128 by
/// 128, so that scales weigh more (at head dimension 64 half a bit a number, where the paper has a
/// quarter); of the first 128 tokens, exact in the paper, 16 are, the most a TailSpec has, and the
/// first block's scales see these too; codes are found from zeros, steps and scales as they are
/// stored, rounded.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"
#include "terse/policy/tail.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/hadamard.hpp"
#include "terse/quant/tile_scales.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct DualAxisSpec {
  int bits = 4;
  PlainFormat scales = PlainFormat::e4m3;  ///< of steps and scales; zeros are fp16
  int rounds = 8;                          ///< of the search for scales
};

/// The codec, in whichever basis. Sections: codes by code_place, steps and zeros of the axis along
/// which codes are found (channels of keys, tokens of values), scales of the other axis.
template <DualAxisSpec S>
struct DualAxisGrid {
  static_assert(S.bits >= 2 && S.bits <= 4, "terse::DualAxisGrid: bits must be 2, 3 or 4.");
  static_assert(S.rounds >= 0, "terse::DualAxisGrid: rounds is negative.");

  static constexpr Granularity granularity = Granularity::per_channel;
  /// Widest stream: encoding keeps a scale of every channel in arrays of this many.
  static constexpr int max_width = max_tile_width;
  static constexpr float top_code = static_cast<float>((1 << S.bits) - 1);

  [[nodiscard]] static Status supports(Side, int width) noexcept {
    if (width > max_width) {
      return error(StatusCode::unsupported, "terse::DualAxisGrid: width is limited to 256", width);
    }
    return {};
  }

  /// Vectors that have a step and a zero, and those that have a scale.
  TERSE_HOST_DEVICE static constexpr TileAxis coded_axis(Side side, int width) noexcept {
    return side == Side::key ? TileAxis::channels(width) : TileAxis::tokens(width);
  }
  TERSE_HOST_DEVICE static constexpr TileAxis scaled_axis(Side side, int width) noexcept {
    return side == Side::key ? TileAxis::tokens(width) : TileAxis::channels(width);
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    const auto coded = static_cast<std::size_t>(coded_axis(side, width).vectors);
    const auto scaled = static_cast<std::size_t>(scaled_axis(side, width).vectors);
    Record r;
    r.add(codes_bytes<S.bits>(side, width));
    r.add(coded * scale_bytes);
    r.add(coded * sizeof(F16));
    r.add(scaled * scale_bytes);
    return r;
  }

  TERSE_HOST_DEVICE static void encode_block(const CodecContext& context, const float* x,
                                             std::byte* block) noexcept {
    const TileAxis coded = coded_axis(context.side, context.width);
    const TileAxis scaled = scaled_axis(context.side, context.width);
    const Record r = record(context.side, context.width);
    TileBalance balance;
    balance.find(x, scaled, coded, S.rounds);
    for (int i = 0; i < scaled.vectors; ++i) {
      balance.first.set(i,
                        store_scale(block + r.sections[3].offset_bytes, i, balance.first.scale[i]));
    }
    for (int i = 0; i < coded.vectors; ++i) {
      const auto number = [&](int k) {
        return rounded_product(x[coded.at(i, k)], balance.first.inverse[k]);
      };
      float low = number(0), high = low;
      for (int k = 1; k < coded.length; ++k) {
        low = smaller(number(k), low);
        high = larger(number(k), high);
      }
      const F16 stored_zero = to_f16_saturating(low + 0.0f);  // never -0
      detail::store_half(block + r.sections[2].offset_bytes, i, stored_zero);
      const float zero = to_float(stored_zero);
      const float step = store_scale(block + r.sections[1].offset_bytes, i,
                                     rounded_quotient(high - low, top_code));
      for (int k = 0; k < coded.length; ++k) {
        const float steps = step == 0.0f ? 0.0f : rounded_quotient(number(k) - zero, step);
        const int code = round_half_even(clamp(steps, 0.0f, top_code));
        const bool is_key = context.side == Side::key;
        store_code<S.bits>(
            block, code_place<S.bits>(context.side, context.width, is_key ? k : i, is_key ? i : k),
            static_cast<unsigned>(code));
      }
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    const Record r = record(context.side, context.width);
    const bool is_key = context.side == Side::key;
    const int coded = is_key ? channel : token, scaled = is_key ? token : channel;
    const unsigned code =
        load_code<S.bits>(block, code_place<S.bits>(context.side, context.width, token, channel));
    return fused_multiply_add(static_cast<float>(code),
                              load_scale(block + r.sections[1].offset_bytes, coded),
                              detail::load_half(block + r.sections[2].offset_bytes, coded)) *
           load_scale(block + r.sections[3].offset_bytes, scaled);
  }

 private:
  static constexpr std::size_t scale_bytes = S.scales == PlainFormat::f16 ? sizeof(F16) : 1;

  TERSE_HOST_DEVICE static float load_scale(const std::byte* section, int i) noexcept {
    if constexpr (S.scales == PlainFormat::f16) return detail::load_half(section, i);
    return from_e4m3(static_cast<std::uint8_t>(section[i]));
  }
  /// Returns the scale as load_scale will.
  TERSE_HOST_DEVICE static float store_scale(std::byte* section, int i, float scale) noexcept {
    if constexpr (S.scales == PlainFormat::f16) {
      detail::store_half(section, i, to_f16_saturating(scale));
    } else {
      section[i] = static_cast<std::byte>(to_e4m3(scale));
    }
    return load_scale(section, i);
  }
};

struct KVarNSpec {
  int key_bits = 4;
  int value_bits = 2;
  /// E4M3, as the paper counts them, or fp16, as in its code for vLLM: for numbers so small that
  /// steps lie below 2^-6.
  PlainFormat scales = PlainFormat::e4m3;
  /// The newest 128 at most, and the first 16 exact.
  TailSpec tail{.min_tokens = 1, .granule_tokens = 128, .sink_tokens = 16};
};

template <KVarNSpec S>
struct KVarN {
  static_assert(S.key_bits >= 2 && S.key_bits <= 4 && S.value_bits >= 2 && S.value_bits <= 4,
                "terse::KVarN: key_bits and value_bits must be 2, 3 or 4.");
  using key_codec = InBasis<DualAxisGrid<DualAxisSpec{.bits = S.key_bits, .scales = S.scales}>,
                            HadamardBasis<max_tile_width>>;
  using value_codec = InBasis<DualAxisGrid<DualAxisSpec{.bits = S.value_bits, .scales = S.scales}>,
                              HadamardBasis<max_tile_width>>;
  static constexpr TailSpec tail = S.tail;
};

using KVarN4K2V = KVarN<KVarNSpec{.key_bits = 4, .value_bits = 2}>;
using KVarN2 = KVarN<KVarNSpec{.key_bits = 2, .value_bits = 2}>;
static_assert(KVarN2::key_codec::record(Side::key, 64).bytes * 8 == 64 * (64 * 2 + 2 * 8 + 16));

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
