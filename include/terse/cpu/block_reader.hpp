/// Chooses, by a codec's properties, how its blocks are read: straight from plain elements,
/// straight from packed codes, by a table of levels or along a trellis, or through `decode`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/policy/codec.hpp"
#include "terse/policy/identity.hpp"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/level_codes.hpp"
#include "terse/quant/planes.hpp"
#include "terse/quant/shaped_trellis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// Up to this many query vectors codes are multiplied as they are; from there on a block is decoded
/// to fp32 once and multiplied as a matrix.
inline constexpr int packed_vectors = 8;

/// All 64 tokens through the codec's `decode`: `[channel, 64]` (keys) or `[64, channel]` (values).
template <class C>
void decode_elements(const CodecContext& context, const std::byte* block, float* out) noexcept {
  for (int t = 0; t < block_tokens; ++t) {
    for (int c = 0; c < context.width; ++c) {
      const int at = context.side == Side::key ? c * block_tokens + t : t * context.width + c;
      out[at] = C::decode(context, block, t, c);
    }
  }
}

/// Keys of the sinks as fp32 `[channel, 64]`; the places beyond are 0.
inline void decode_sink_keys(const CodecContext& context, const std::byte* block,
                             float* out) noexcept {
  for (int c = 0; c < context.width; ++c) {
    for (int t = 0; t < block_tokens; ++t) {
      out[c * block_tokens + t] =
          t < sink_block_tokens ? Identity::load(context, block, sink_block_tokens, t, c) : 0.0f;
    }
  }
}

/// Decodes a block of a table's levels to fp32, keys `[channel, 64]`, values `[64, channel]`.
template <LevelCodec C>
void decode_levels(const KernelTable& table, const CodecContext& context, const std::byte* block,
                   float* out) noexcept {
  using Format = typename C::level_format;
  float levels[16] = {};
  for (unsigned code = 0; code < 1u << Format::bits; ++code) levels[code] = Format::level(code);
  const int group = C::group_channels(context.width);
  for (int begin = 0; begin < context.width; begin += group) {
    float scales[block_tokens];
    for (int t = 0; t < block_tokens; ++t) scales[t] = C::scale_of(context, block, t, begin);
    const int end = begin + group < context.width ? begin + group : context.width;
    table.decode_levels(Format::bits, context.side, context.width, block, levels, scales, begin,
                        end, out);
  }
}

/// The same of codes along a trellis.
template <TrellisCodec C>
void decode_trellis(const KernelTable& table, const CodecContext& context, const std::byte* block,
                    float* out) noexcept {
  float levels[32] = {}, scales[block_tokens];
  for (unsigned i = 0; i < C::Levels::num_levels; ++i) levels[i] = C::Levels::level(i);
  for (int t = 0; t < block_tokens; ++t) scales[t] = C::scale_of(context, block, t);
  table.decode_trellis(C::trellis_spec.bits, context.side, context.width, block, levels, scales,
                       out);
}

/// Decodes the first `planes` planes of a run to its place in `out`, keys `[channel, 64]`, values
/// `[64, channel]`. Gives the bytes read.
template <PlaneCodec C>
std::uint64_t read_run(const CodecContext& context, const std::byte* block, int run, int planes,
                       float* out) noexcept {
  const int length = C::run_length(context.width);
  C::decode_run(context, block, run, planes, out + std::ptrdiff_t{run} * length);
  return static_cast<std::uint64_t>(C::read_bytes(planes, context.width));
}

/// Decodes a block of planes, all of them, as read_run.
template <PlaneCodec C>
void decode_planes(const CodecContext& context, const std::byte* block, float* out) noexcept {
  for (int run = 0; run < C::runs(context.width); ++run) {
    read_run<C>(context, block, run, C::num_planes, out);
  }
}

/// Any codec, decoded to fp32 and multiplied as a matrix: levels of a table or a trellis by
/// vectors, planes run by run, others through `decode`.
template <class C>
struct BlockReader {
  static constexpr bool specialized = LevelCodec<C> || TrellisCodec<C>;
  static constexpr const char* name = [] {
    if constexpr (PlaneCodec<C>) {
      return C::bits == 16 ? "planes_8_4_4" : C::bits == 8 ? "planes_4_4" : "planes_2_2";
    } else if constexpr (LevelCodec<C>) {
      return C::bits == 2 ? "levels_2_bit" : C::bits == 3 ? "levels_3_bit" : "levels_4_bit";
    } else if constexpr (TrellisCodec<C>) {
      constexpr int bits = C::trellis_spec.bits;
      return bits == 1   ? "trellis_1_bit"
             : bits == 2 ? "trellis_2_bit"
             : bits == 3 ? "trellis_3_bit"
                         : "trellis_4_bit";
    } else {
      return "generic_decode";
    }
  }();

  /// Whether `scores` (`values`) of so many vectors decodes blocks into its scratch.
  [[nodiscard]] static constexpr bool decodes_keys(int) noexcept { return true; }
  [[nodiscard]] static constexpr bool decodes_values(int) noexcept { return true; }

  [[nodiscard]] static std::size_t prepared_bytes(const KernelTable&, int, int) noexcept {
    return 0;
  }
  static void prepare(const KernelTable&, const float*, int, int, std::byte*) noexcept {}

  static void decode([[maybe_unused]] const KernelTable& table, const CodecContext& context,
                     const std::byte* block, float* out) noexcept {
    if constexpr (LevelCodec<C>) {
      decode_levels<C>(table, context, block, out);
    } else if constexpr (TrellisCodec<C>) {
      decode_trellis<C>(table, context, block, out);
    } else if constexpr (PlaneCodec<C>) {
      decode_planes<C>(context, block, out);
    } else {
      decode_elements<C>(context, block, out);
    }
  }
  static void scores(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     const float* queries, const std::byte*, int rows, float* out, float* scratch,
                     const std::byte*) noexcept {
    decode(table, context, block, scratch);
    table.scores_f32(queries, rows, context.width, scratch, block_tokens, out);
  }
  static void values(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     const float* probabilities, int rows, float* accumulators, float* scratch,
                     const std::byte*) noexcept {
    decode(table, context, block, scratch);
    table.values_f32(probabilities, rows, context.width, scratch, block_tokens, accumulators);
  }
};

/// Plain elements.
template <PlainCodec C>
struct BlockReader<C> {
  static constexpr bool specialized = true;
  static constexpr bool is_f16 = C::plain_format == PlainFormat::f16;
  static constexpr const char* name = is_f16 ? "plain_f16" : "plain_e4m3";

  [[nodiscard]] static constexpr bool decodes_keys(int) noexcept { return false; }
  [[nodiscard]] static constexpr bool decodes_values(int) noexcept { return false; }

  [[nodiscard]] static std::size_t prepared_bytes(const KernelTable&, int, int) noexcept {
    return 0;
  }
  static void prepare(const KernelTable&, const float*, int, int, std::byte*) noexcept {}

  static void decode(const KernelTable&, const CodecContext& context, const std::byte* block,
                     float* out) noexcept {
    decode_elements<C>(context, block, out);
  }
  static void scores(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     const float* queries, const std::byte*, int rows, float* out, float*,
                     const std::byte* next) noexcept {
    if constexpr (is_f16) {
      table.scores_f16(queries, rows, context.width, reinterpret_cast<const F16*>(block),
                       block_tokens, out, next);
    } else {
      table.scores_e4m3(queries, rows, context.width, reinterpret_cast<const std::uint8_t*>(block),
                        block_tokens, out, next);
    }
  }
  static void values(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     const float* probabilities, int rows, float* accumulators, float*,
                     const std::byte* next) noexcept {
    if constexpr (is_f16) {
      table.values_f16(probabilities, rows, context.width, reinterpret_cast<const F16*>(block),
                       block_tokens, accumulators, next);
    } else {
      table.values_e4m3(probabilities, rows, context.width,
                        reinterpret_cast<const std::uint8_t*>(block), block_tokens, accumulators,
                        next);
    }
  }
};

/// Integer codes with scales.
template <AffineCodec C>
struct BlockReader<C> {
  static constexpr AffineFormat format = C::affine_format;
  static constexpr bool specialized = true;
  static constexpr const char* name = format.granularity == Granularity::per_channel
                                          ? (format.bits == 2   ? "affine_2_bit_per_channel"
                                             : format.bits == 3 ? "affine_3_bit_per_channel"
                                             : format.bits == 4 ? "affine_4_bit_per_channel"
                                                                : "affine_8_bit_per_channel")
                                          : (format.bits == 1   ? "affine_1_bit_per_token"
                                             : format.bits == 2 ? "affine_2_bit_per_token"
                                             : format.bits == 3 ? "affine_3_bit_per_token"
                                             : format.bits == 4 ? "affine_4_bit_per_token"
                                                                : "affine_8_bit_per_token");

  [[nodiscard]] static constexpr bool decodes_keys(int vectors) noexcept {
    return vectors > packed_vectors;
  }
  [[nodiscard]] static constexpr bool decodes_values(int vectors) noexcept {
    return vectors > packed_vectors || format.granularity == Granularity::per_channel;
  }

  [[nodiscard]] static std::size_t prepared_bytes(const KernelTable& table, int rows,
                                                  int width) noexcept {
    return rows <= packed_vectors ? table.prepared_bytes(format, rows, width) : 0;
  }
  static void prepare(const KernelTable& table, const float* queries, int rows, int width,
                      std::byte* prepared) noexcept {
    if (rows <= packed_vectors) table.prepare_queries(format, queries, rows, width, prepared);
  }

  static void decode(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     float* out) noexcept {
    table.decode_affine(format, context.side, context.width, block, out);
  }
  static void scores(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     const float* queries, const std::byte* prepared, int rows, float* out,
                     float* scratch, const std::byte* next) noexcept {
    if (!decodes_keys(rows)) {
      table.scores_affine(format, context.width, block, queries, prepared, rows, out, next);
    } else {
      decode(table, context, block, scratch);
      table.scores_f32(queries, rows, context.width, scratch, block_tokens, out);
    }
  }
  static void values(const KernelTable& table, const CodecContext& context, const std::byte* block,
                     const float* probabilities, int rows, float* accumulators, float* scratch,
                     const std::byte* next) noexcept {
    if (!decodes_values(rows)) {
      table.values_affine(format, context.width, block, probabilities, rows, accumulators, next);
    } else {
      decode(table, context, block, scratch);
      table.values_f32(probabilities, rows, context.width, scratch, block_tokens, accumulators);
    }
  }
};

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
