/// Policies that the device's benchmarks name beside the library's own.
#pragma once

#include "terse/terse.hpp"

namespace terse::bench {

/// Keys with a scale per channel and block, values with one per token; the newest block is exact.
template <int Bits>
struct Diet {
  using key_codec =
      AffineGroup<AffineSpec{.bits = Bits, .granularity = Granularity::per_channel, .group = 64}>;
  using value_codec = AffineGroup<AffineSpec{.bits = Bits}>;
  static constexpr TailSpec tail{.min_tokens = 1};
};
/// KIVI with blocks of 64 tokens in place of 128.
using Kivi2Short = Kivi<KiviSpec{.bits = 2, .residual_tokens = 64}>;
using Kivi4Short = Kivi<KiviSpec{.bits = 4, .residual_tokens = 64}>;
/// A policy's codes without its tail: every token is encoded in its own step.
template <class P>
using Open = KeyValue<typename PolicyOf<P>::key_codec, typename PolicyOf<P>::value_codec>;
/// Palu's G-LRD: four KV heads share a latent.
using PaluOfFour = Palu<PaluSpec{.key_heads_per_group = 4, .value_heads_per_group = 4}>;

}  // namespace terse::bench
