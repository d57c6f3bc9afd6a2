/// AlignedKV: Reducing Memory Access of KV-Cache with Precision-Aligned Quantization (Tan, Wang,
/// Yan and Deng, arXiv 2409.16546) and its kin: caches that store all bits and read those that
/// count (AttendParams::planes). The newest tokens, up to 64, are exact, as in the original.
#pragma once

#include "terse/config.hpp"
#include "terse/policy/tail.hpp"
#include "terse/quant/planes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

/// Keys by channel and values by token, of the same kind of planes.
template <PlaneCode Code, int First, int Second, int Third>
struct AlignedPlanes {
  using key_codec = Planes<PlanesSpec{.code = Code,
                                      .granularity = Granularity::per_channel,
                                      .first_bits = First,
                                      .second_bits = Second,
                                      .third_bits = Third}>;
  using value_codec = Planes<PlanesSpec{.code = Code,
                                        .granularity = Granularity::per_token,
                                        .first_bits = First,
                                        .second_bits = Second,
                                        .third_bits = Third}>;
  static constexpr TailSpec tail{.min_tokens = 1, .granule_tokens = block_tokens};
};

/// The paper's planes: fp16 numbers as 8 + 4 + 4 bits, lossless. 16.2 bits a number stored; how
/// many are read is the caller's choice.
using AlignedKV = AlignedPlanes<PlaneCode::f16, 8, 4, 4>;
/// 16-bit fixed-point numbers as 8 + 4 + 4 bits, with an exponent a channel or token: for bf16,
/// whose first 8 bits hold no mantissa.
using AlignedFixed16 = AlignedPlanes<PlaneCode::fixed_point, 8, 4, 4>;
/// 8-bit codes, min-max, as 4 + 4 bits.
using AlignedInt8 = AlignedPlanes<PlaneCode::affine, 4, 4, 0>;
/// 4-bit codes, min-max, as 2 + 2 bits.
using AlignedInt4 = AlignedPlanes<PlaneCode::affine, 2, 2, 0>;

static_assert(AlignedKV::key_codec::record(Side::key, 128).bytes == 128 * 129);
static_assert(AlignedKV::value_codec::record(Side::value, 64).bytes == 64 * 130);
static_assert(AlignedInt8::key_codec::record(Side::key, 64).bytes == 64 * 68);
static_assert(AlignedInt4::value_codec::record(Side::value, 128).bytes == 64 * 68);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
