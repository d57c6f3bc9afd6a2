/// Codes cut into planes of bits, so that attention may read only the leading ones: AlignedKV (Tan,
/// Wang, Yan and Deng, arXiv 2409.16546) for fp16 numbers, the same for fixed-point numbers with an
/// exponent per run, and for the integer codes of affine grids.
///
/// A run is what attention reads to one depth: a channel of 64 keys, or one token's value. Each
/// plane holds run after run, `[run, element]`, so that what is left out is whole stretches of
/// memory. Bits that were not read count as half their range. How deep runs are read:
/// plane_plan.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/codec.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// What a code is before it is cut.
enum class PlaneCode : std::uint8_t {
  /// The bits of an fp16 number: nothing is lost that fp16 holds. Magnitudes above 65504 are stored
  /// as 65504.
  f16,
  /// A number of steps, offset by half the range, of a power of two that the run shares: numbers
  /// lose what lies below the largest magnitude of their run / 2^(bits - 1).
  fixed_point,
  /// The code of ScaleRule::min_max, with the run's fp16 scale and minimum.
  affine,
};

struct PlanesSpec {
  PlaneCode code = PlaneCode::f16;
  Granularity granularity = Granularity::per_channel;  ///< of keys; per_token of values
  int first_bits = 8;                                  ///< of the leading plane: 8, 4 or 2
  int second_bits = 4;
  int third_bits = 4;  ///< 0: there is no third plane
};

/// A codec that is stored as planes.
template <class C>
concept PlaneCodec = Codec<C> &&
    requires(const CodecContext& context, const std::byte* block, float* out) {
  { C::num_planes } -> std::convertible_to<int>;
  { C::run_unit(context, block, 0) } -> std::same_as<float>;
  { C::plane_error(0) } -> std::same_as<float>;
  C::decode_run(context, block, 0, 0, out);
};

namespace detail {

/// Bits `i * Bits ...` of a plane run `[8 / Bits, ...]`. Bytes are one element each, or hold
/// elements a word apart: of 8 nibbles in 4 bytes, byte j holds elements j and j + 4; of 16 pairs
/// of bits, elements j, j + 4, j + 8 and j + 12. So four neighbours come out of a word at once.
struct PlanePlace {
  int byte = 0;
  int shift = 0;
};
template <int Bits>
[[nodiscard]] TERSE_HOST_DEVICE constexpr PlanePlace plane_place(int element) noexcept {
  static_assert(Bits == 2 || Bits == 4 || Bits == 8);
  constexpr int per_word = 32 / Bits;
  return {element / per_word * 4 + element % 4, element % per_word / 4 * Bits};
}

}  // namespace detail

/// Sections: the planes, `[run, element]` each, then the runs' parameters: an exponent byte (f16,
/// fixed_point), or scales and then minima (affine).
template <PlanesSpec S>
struct Planes {
  static constexpr Granularity granularity = S.granularity;
  static constexpr PlaneCode plane_code = S.code;
  static constexpr int num_planes = S.third_bits == 0 ? 2 : 3;
  static constexpr int bits = S.first_bits + S.second_bits + S.third_bits;
  static_assert((S.first_bits == 8 && S.second_bits == 4 && S.third_bits == 4) ||
                    (S.first_bits == 4 && S.second_bits == 4 && S.third_bits == 0) ||
                    (S.first_bits == 2 && S.second_bits == 2 && S.third_bits == 0),
                "terse::Planes: planes of 8+4+4, 4+4 or 2+2 bits have a stored order.");
  static_assert(S.code != PlaneCode::f16 || bits == 16,
                "terse::Planes: fp16 numbers have 16 bits; use planes of 8+4+4.");
  static_assert(
      S.code != PlaneCode::affine || bits <= 8,
      "terse::Planes: affine codes have up to 8 bits; use PlaneCode::fixed_point for 16.");

  /// Bits of plane `i`.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int plane_bits(int i) noexcept {
    return i == 0 ? S.first_bits : i == 1 ? S.second_bits : S.third_bits;
  }
  /// Bits that are not read with the first `planes` planes.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int missing_bits(int planes) noexcept {
    return bits - (planes > 0 ? plane_bits(0) : 0) - (planes > 1 ? plane_bits(1) : 0) -
           (planes > 2 ? plane_bits(2) : 0);
  }
  /// What plane `i` counts as where it is not read: half its range, but an fp16 number's first
  /// plane as 0.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr unsigned unread_bits(int i) noexcept {
    return i == 0 && S.code == PlaneCode::f16 ? 0u : (1u << plane_bits(i)) >> 1;
  }
  /// The same of all planes but the first `planes`, as the last bits of a code.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr unsigned missing_code(int planes) noexcept {
    unsigned code = 0;
    for (int i = planes; i < num_planes; ++i) code |= unread_bits(i) << missing_bits(i + 1);
    return code;
  }
  /// Runs that are read to one depth, up to four neighbours, so that each plane gives 64 bytes
  /// where they suffice: less than that memory does not deliver alone.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int runs_together(int width) noexcept {
    const int least = run_bytes(num_planes - 1, width);
    return least >= 64 ? 1 : least >= 32 ? 2 : 4;
  }

  [[nodiscard]] static Status supports(Side side, int width) noexcept {
    if ((side == Side::key) != (granularity == Granularity::per_channel)) {
      return error(StatusCode::unsupported,
                   "terse::Planes: keys are read to a depth by channel, values by token; give keys "
                   "Granularity::per_channel and values per_token");
    }
    if (side == Side::value && width % 16 != 0) {
      return error(StatusCode::unsupported,
                   "terse::Planes: values need a multiple of 16 channels, to fill words of planes; "
                   "detail: the width",
                   width);
    }
    return {};
  }

  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int runs(int width) noexcept {
    return granularity == Granularity::per_channel ? width : block_tokens;
  }
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int run_length(int width) noexcept {
    return granularity == Granularity::per_channel ? block_tokens : width;
  }
  /// Bytes of a run in plane `i`.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr int run_bytes(int i, int width) noexcept {
    return run_length(width) * plane_bits(i) / 8;
  }
  /// Where plane `i` begins in a record; i = num_planes: where the parameters do.
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr std::size_t plane_offset(int i,
                                                                            int width) noexcept {
    std::size_t offset = 0;
    for (int k = 0; k < i; ++k) {
      offset = round_up(offset + static_cast<std::size_t>(runs(width) * run_bytes(k, width)),
                        section_align_bytes);
    }
    return offset;
  }
  [[nodiscard]] TERSE_HOST_DEVICE static constexpr std::size_t minima_offset(int width) noexcept {
    return round_up(
        plane_offset(num_planes, width) + static_cast<std::size_t>(runs(width)) * sizeof(F16),
        section_align_bytes);
  }

  TERSE_HOST_DEVICE static constexpr Record record(Side, int width) noexcept {
    Record r;
    const auto count = static_cast<std::size_t>(runs(width));
    for (int i = 0; i < num_planes; ++i) {
      r.add(count * static_cast<std::size_t>(run_bytes(i, width)));
    }
    r.add(count * (S.code == PlaneCode::affine ? sizeof(F16) : 1));
    if (S.code == PlaneCode::affine) r.add(count * sizeof(F16));
    return r;
  }

  TERSE_HOST_DEVICE static void encode_block(const CodecContext& context, const float* x,
                                             std::byte* block) noexcept
      requires(S.granularity == Granularity::per_channel) {
    for (int c = 0; c < context.width; ++c) {
      encode_run(context, x + c, static_cast<std::size_t>(context.width), c, block);
    }
  }
  TERSE_HOST_DEVICE static void encode_token(const CodecContext& context, const float* x, int token,
                                             std::byte* block) noexcept
      requires(S.granularity == Granularity::per_token) {
    encode_run(context, x, 1, token, block);
  }
  TERSE_HOST_DEVICE static void copy_token(const CodecContext& context, const std::byte* from,
                                           int from_token, std::byte* to, int to_token) noexcept
      requires(S.granularity == Granularity::per_token) {
    for (int i = 0; i < num_planes; ++i) {
      const int bytes = run_bytes(i, context.width);
      const std::size_t offset = plane_offset(i, context.width);
      std::memcpy(to + offset + to_token * bytes, from + offset + from_token * bytes,
                  static_cast<std::size_t>(bytes));
    }
    const std::size_t params = plane_offset(num_planes, context.width);
    if constexpr (S.code == PlaneCode::affine) {
      for (const std::size_t offset : {params, minima_offset(context.width)}) {
        std::memcpy(to + offset + to_token * 2, from + offset + from_token * 2, 2);
      }
    } else {
      to[params + static_cast<std::size_t>(to_token)] =
          from[params + static_cast<std::size_t>(from_token)];
    }
  }

  /// Encodes the run `x[i * stride]`, all its planes and parameters.
  TERSE_HOST_DEVICE static void encode_run(const CodecContext& context, const float* x,
                                           std::size_t stride, int run, std::byte* block) noexcept {
    const int width = context.width, count = run_length(width);
    Params params;
    typename Grid::Step step{};
    if constexpr (S.code == PlaneCode::affine) {
      const auto group = Grid::find_group(Grid::find_extremes(x, stride, count), x, stride, count);
      step = group.step;
      std::byte* scales = block + plane_offset(num_planes, width);
      detail::store_half(scales, run, group.scale);
      detail::store_half(block + minima_offset(width), run, group.minimum);
    } else {
      float peak = 0.0f;
      for (int i = 0; i < count; ++i) {
        peak = larger(absolute(x[static_cast<std::size_t>(i) * stride]), peak);
      }
      params.exponent = exponent_of(peak);
      block[plane_offset(num_planes, width) + static_cast<std::size_t>(run)] =
          static_cast<std::byte>(params.exponent);
    }
    for (int begin = 0; begin < count; begin += codes_at_once) {
      unsigned codes[codes_at_once];
      for (int k = 0; k < codes_at_once; ++k) {
        const float v = x[static_cast<std::size_t>(begin + k) * stride];
        if constexpr (S.code == PlaneCode::affine) {
          codes[k] = Grid::code_of(v, step);
        } else {
          codes[k] = code_of(v, params);
        }
      }
      store_codes(codes, width, run, begin, block);
    }
  }

  TERSE_HOST_DEVICE static float decode(const CodecContext& context, const std::byte* block,
                                        int token, int channel) noexcept {
    constexpr bool by_channel = granularity == Granularity::per_channel;
    const int run = by_channel ? channel : token, element = by_channel ? token : channel;
    const int width = context.width;
    unsigned code =
        load_bits<0>(width, block, run, element) | load_bits<1>(width, block, run, element);
    if constexpr (num_planes > 2) code |= load_bits<2>(width, block, run, element);
    return value_of(code, load_params(width, block, run));
  }

  /// The run as its first `planes` planes (0 ... num_planes) give it, `out [run_length]`.
  TERSE_HOST_DEVICE static void decode_run(const CodecContext& context, const std::byte* block,
                                           int run, int planes, float* out) noexcept {
    const int width = context.width;
    const Params params = load_params(width, block, run);
    for (int begin = 0; begin < run_length(width); begin += codes_at_once) {
      unsigned codes[codes_at_once] = {};
      load_plane<0>(width, block, run, begin, planes, codes);
      load_plane<1>(width, block, run, begin, planes, codes);
      if constexpr (num_planes > 2) load_plane<2>(width, block, run, begin, planes, codes);
      for (int k = 0; k < codes_at_once; ++k) out[begin + k] = value_of(codes[k], params);
    }
  }

  /// Exponent fields of the runs' largest numbers `[run]`.
  [[nodiscard]] static const std::uint8_t* exponents(int width, const std::byte* block) noexcept
      requires(S.code == PlaneCode::f16) {
    return reinterpret_cast<const std::uint8_t*>(block + plane_offset(num_planes, width));
  }

  /// Numbers of a run differ from their whole codes' by at most run_unit * plane_error(planes
  /// read).
  TERSE_HOST_DEVICE static float run_unit(const CodecContext& context, const std::byte* block,
                                          int run) noexcept {
    const Params params = load_params(context.width, block, run);
    if constexpr (S.code == PlaneCode::affine) {
      return params.scale;
    } else if constexpr (S.code == PlaneCode::fixed_point) {
      return power_of_two(params.exponent);
    } else {
      // The unit in the last place of the largest number; subnormal ones have that of exponent 1.
      const int exponent = params.exponent > 1 ? params.exponent : 1;
      return power_of_two(exponent + (127 - 25));
    }
  }
  TERSE_HOST_DEVICE static constexpr float plane_error(int planes) noexcept {
    if (planes == num_planes) return 0.0f;
    const float missed = static_cast<float>(missing_code(planes));
    // An fp16 number of which nothing is read may be as large as 2^11 units.
    return planes == 0 && S.code == PlaneCode::f16 ? missed + 2048.0f : missed;
  }

  /// Bytes of a run that are read with its first `planes` planes, parameters included.
  TERSE_HOST_DEVICE static constexpr int read_bytes(int planes, int width) noexcept {
    int bytes = S.code == PlaneCode::affine ? 4 : 1;
    for (int i = 0; i < planes; ++i) bytes += run_bytes(i, width);
    return bytes;
  }

 private:
  using Grid =
      AffineGroup<AffineSpec{.bits = bits <= 8 ? bits : 8,
                             .granularity = S.granularity,
                             .group = S.granularity == Granularity::per_channel ? block_tokens : 0,
                             .rule = ScaleRule::min_max}>;
  static constexpr int codes_at_once = 16;

  struct Params {
    int exponent = 0;
    float scale = 0.0f, minimum = 0.0f;
  };

  [[nodiscard]] TERSE_HOST_DEVICE static float power_of_two(int biased) noexcept {
    return biased <= 0 ? 0.0f : __builtin_bit_cast(float, static_cast<std::uint32_t>(biased) << 23);
  }

  /// f16: the exponent field of the largest number as stored. fixed_point: that of an fp32 number,
  /// the step; 0 where all numbers are.
  [[nodiscard]] TERSE_HOST_DEVICE static int exponent_of(float peak) noexcept {
    if constexpr (S.code == PlaneCode::f16) return to_f16_saturating(peak).bits >> 10;
    if (peak == 0.0f) return 0;
    // The largest code is 2^(bits-1) - 1: a peak that would round beyond it takes a step twice as
    // large.
    constexpr int half = 1 << (bits - 1);
    const int field = static_cast<int>(__builtin_bit_cast(std::uint32_t, peak) >> 23);
    int exponent = field - (bits - 2) > 1 ? field - (bits - 2) : 1;
    if (peak > power_of_two(exponent) * (static_cast<float>(half) - 0.5f)) ++exponent;
    return exponent;
  }
  [[nodiscard]] TERSE_HOST_DEVICE static unsigned code_of(float v, const Params& params) noexcept {
    if constexpr (S.code == PlaneCode::f16) {
      return to_f16_saturating(v).bits;
    } else {
      constexpr int half = 1 << (bits - 1);
      if (params.exponent == 0) return static_cast<unsigned>(half);
      const float steps = rounded_quotient(v, power_of_two(params.exponent));
      return static_cast<unsigned>(clamp(round_half_even(steps), -half, half - 1) + half);
    }
  }
  [[nodiscard]] TERSE_HOST_DEVICE static float value_of(unsigned code,
                                                        const Params& params) noexcept {
    if constexpr (S.code == PlaneCode::f16) {
      return to_float(F16{static_cast<std::uint16_t>(code)});
    } else if constexpr (S.code == PlaneCode::affine) {
      return fused_multiply_add(static_cast<float>(code), params.scale, params.minimum);
    } else {
      return (static_cast<float>(code) - static_cast<float>(1 << (bits - 1))) *
             power_of_two(params.exponent);
    }
  }

  [[nodiscard]] TERSE_HOST_DEVICE static Params load_params(int width, const std::byte* block,
                                                            int run) noexcept {
    Params params;
    const std::byte* at = block + plane_offset(num_planes, width);
    if constexpr (S.code == PlaneCode::affine) {
      params.scale = detail::load_half(at, run);
      params.minimum = detail::load_half(block + minima_offset(width), run);
    } else {
      params.exponent = static_cast<int>(at[run]);
    }
    return params;
  }

  /// The bits of an element that plane I holds, where they are in its code.
  template <int I>
  [[nodiscard]] TERSE_HOST_DEVICE static unsigned load_bits(int width, const std::byte* block,
                                                            int run, int element) noexcept {
    constexpr int own = plane_bits(I), behind = missing_bits(I + 1);
    const detail::PlanePlace place = detail::plane_place<own>(element);
    const auto byte = static_cast<unsigned>(
        block[plane_offset(I, width) +
              static_cast<std::size_t>(run * run_bytes(I, width) + place.byte)]);
    return ((byte >> place.shift & ((1u << own) - 1u)) ^ unread_bits(I)) << behind;
  }
  /// Adds what plane I holds of codes [codes_at_once] from element `begin` on, or what it counts as
  /// where it is not among the first `planes`.
  template <int I>
  TERSE_HOST_DEVICE static void load_plane(int width, const std::byte* block, int run, int begin,
                                           int planes, unsigned (&codes)[codes_at_once]) noexcept {
    constexpr int own = plane_bits(I), behind = missing_bits(I + 1), per_word = 32 / own;
    constexpr unsigned unread = unread_bits(I);
    if (planes <= I) {
      for (unsigned& code : codes) code |= unread << behind;
      return;
    }
    const std::byte* from = block + plane_offset(I, width) +
                            static_cast<std::size_t>(run * run_bytes(I, width) + begin * own / 8);
    for (int k = 0; k < codes_at_once; ++k) {
      const auto byte = static_cast<unsigned>(from[k / per_word * 4 + k % 4]);
      codes[k] |= ((byte >> (k % per_word / 4 * own) & ((1u << own) - 1u)) ^ unread) << behind;
    }
  }

  /// Stores codes [codes_at_once] from element `begin` on, whole words of every plane.
  TERSE_HOST_DEVICE static void store_codes(const unsigned (&codes)[codes_at_once], int width,
                                            int run, int begin, std::byte* block) noexcept {
    store_plane<0>(codes, width, run, begin, block);
    store_plane<1>(codes, width, run, begin, block);
    if constexpr (num_planes > 2) store_plane<2>(codes, width, run, begin, block);
  }
  template <int I>
  TERSE_HOST_DEVICE static void store_plane(const unsigned (&codes)[codes_at_once], int width,
                                            int run, int begin, std::byte* block) noexcept {
    constexpr int own = plane_bits(I), behind = missing_bits(I + 1);
    constexpr int words = codes_at_once * own / 32, per_word = 32 / own;
    std::byte* to = block + plane_offset(I, width) +
                    static_cast<std::size_t>(run * run_bytes(I, width) + begin * own / 8);
    for (int w = 0; w < words; ++w) {
      std::uint32_t word = 0;
      for (int k = 0; k < per_word; ++k) {
        const std::uint32_t part = codes[w * per_word + k] >> behind & ((1u << own) - 1u);
        word |= (part ^ unread_bits(I)) << (k % 4 * 8 + k / 4 * own);
      }
#if defined(__CUDA_ARCH__)
      reinterpret_cast<std::uint32_t*>(to)[w] = word;
#else
      std::memcpy(to + 4 * w, &word, sizeof word);
#endif
    }
  }
};

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
