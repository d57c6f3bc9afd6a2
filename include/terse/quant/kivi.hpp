/// KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache (arXiv 2402.02750, sections 3.2
/// and 3.3). Keys per channel over groups of tokens, values per token over groups of channels,
/// min-max affine, scale and minimum in fp16: bits + 32/group bits per element. The paper has 2 and
/// 4 bits; 3 are an addition.
///
/// Keys follow the paper exactly: the newest `p mod R` keys stay exact and R of them are encoded at
/// once. Values depart: the paper's value window slides (always the newest R are exact), here keys
/// and values are sealed together. Constant groups decode to their constant; the original divides
/// zero by zero.
#pragma once

#include "terse/config.hpp"
#include "terse/policy/tail.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {

struct KiviSpec {
  int bits = 2;
  int group_tokens = 32;      ///< tokens that share a key scale
  int group_channels = 32;    ///< channels that share a value scale
  int residual_tokens = 128;  ///< R: multiple of 64
};

template <KiviSpec S>
struct Kivi {
  static_assert(S.bits >= 2 && S.bits <= 4,
                "terse::Kivi: bits must be 2, 3 or 4; the paper has 2 and 4.");
  static_assert(S.residual_tokens > 0 && S.residual_tokens % block_tokens == 0,
                "terse::Kivi: residual_tokens must be a positive multiple of 64, because blocks of "
                "64 tokens are sealed whole; use 64 or 128.");

  using key_codec = AffineGroup<AffineSpec{.bits = S.bits,
                                           .granularity = Granularity::per_channel,
                                           .group = S.group_tokens,
                                           .rule = ScaleRule::min_max}>;
  using value_codec = AffineGroup<AffineSpec{.bits = S.bits,
                                             .granularity = Granularity::per_token,
                                             .group = S.group_channels,
                                             .rule = ScaleRule::min_max}>;
  static constexpr TailSpec tail{.min_tokens = 1, .granule_tokens = S.residual_tokens};
};

using Kivi2 = Kivi<KiviSpec{.bits = 2}>;
using Kivi3 = Kivi<KiviSpec{.bits = 3}>;
using Kivi4 = Kivi<KiviSpec{.bits = 4}>;
static_assert(Kivi2::key_codec::record(Side::key, 64).bytes * 8 == 64 * 64 * 3);
static_assert(Kivi3::key_codec::record(Side::key, 64).bytes * 8 == 64 * 64 * 4);
static_assert(Kivi4::value_codec::record(Side::value, 64).bytes * 8 == 64 * 64 * 5);

}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
