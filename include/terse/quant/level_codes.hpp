/// Codes that stand for the levels of a table, with a scale per group of channels of a token: what
/// TurboQuant and NVFP4 store.
///
///   decode(code) = level(code) * scale
#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// A codec of the levels and scales of `Format`:
///
///   static constexpr int bits;                       // of a code: 2, 3 or 4
///   static constexpr int group;                      // channels a scale: 0 (all), or times of 8
///   using Scale;                                     // as stored; zero bytes mean 0
///   static constexpr float level(unsigned code);
///   static constexpr float scale_value(Scale);       // what a level is multiplied by
///   struct Group { Scale scale; ... };
///   static Group find_group(const float* x, int count);
///   static unsigned code_of(float v, const Group&);
///
/// With one group a token find_group may take a third argument by whose sum_of_squares(count,
/// number) it finds the group, by default SumOfSquares: on a device lanes then share it.
///
/// Sections: codes in the order of code_place, then scales `[channel group, token]`.
template <class Format>
struct LevelCodes {
  using level_format = Format;
  using Scale = typename Format::Scale;

  static constexpr Granularity granularity = Granularity::per_token;
  static constexpr int bits = Format::bits;
  static_assert(bits >= 2 && bits <= 4,
                "terse::LevelCodes: bits must be 2, 3 or 4: tables of levels have up to 16.");
  static_assert(
      Format::group >= 0 && Format::group % 8 == 0,
      "terse::LevelCodes: group must be 0 or a multiple of 8, so that vectors of channels "
      "share a scale.");

  TERSE_HOST_DEVICE static constexpr int group_channels(int width) noexcept {
    return Format::group == 0 ? width : Format::group;
  }
  TERSE_HOST_DEVICE static constexpr int groups(int width) noexcept {
    return ceil_div(width, group_channels(width));
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side side, int width) noexcept {
    Record r;
    r.add(codes_bytes<bits>(side, width));
    r.add(static_cast<std::size_t>(groups(width) * block_tokens) * sizeof(Scale));
    return r;
  }

  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept {
    const int width = context.width, group = group_channels(width);
    for (int first = 0; first < width; first += group) {
      const int count = width - first < group ? width - first : group;
      const typename Format::Group g = Format::find_group(x + first, count);
      std::memcpy(block + scale_offset(context, token, first), &g.scale, sizeof(Scale));
      for (int c = first; c < first + count; ++c) {
        store_code<bits>(block, place(context, token, c), Format::code_of(x[c], g));
      }
    }
  }

  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept {
    for (int c = 0; c < context.width; ++c) {
      store_code<bits>(to, place(context, to_token, c),
                       load_code<bits>(from, place(context, from_token, c)));
    }
    for (int c = 0; c < context.width; c += group_channels(context.width)) {
      std::memcpy(to + scale_offset(context, to_token, c),
                  from + scale_offset(context, from_token, c), sizeof(Scale));
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    return Format::level(load_code<bits>(block, place(context, token, channel))) *
           scale_of(context, block, token, channel);
  }

  /// What the level of (token, channel) is multiplied by.
  TERSE_HOST_DEVICE static float scale_of(const CodecContext& context, const std::byte* block,
                                          int token, int channel) noexcept {
    Scale scale;
    std::memcpy(&scale, block + scale_offset(context, token, channel), sizeof scale);
    return Format::scale_value(scale);
  }

  /// Where the scale of (token, channel) lies in a record.
  TERSE_HOST_DEVICE static constexpr std::size_t scale_offset(const CodecContext& context,
                                                              int token, int channel) noexcept {
    const int index = channel / group_channels(context.width) * block_tokens + token;
    return round_up(codes_bytes<bits>(context.side, context.width), section_align_bytes) +
           static_cast<std::size_t>(index) * sizeof(Scale);
  }

 private:
  TERSE_HOST_DEVICE static constexpr CodePlace place(const CodecContext& context, int token,
                                                     int channel) noexcept {
    return code_place<bits>(context.side, context.width, token, channel);
  }
};

/// Served by kernels that look levels up: codes and decodes as LevelCodes does.
template <class C>
concept LevelCodec = Codec<C> && std::derived_from<C, LevelCodes<typename C::level_format>> &&
    encodes_and_decodes_as<C, LevelCodes<typename C::level_format>>;

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
