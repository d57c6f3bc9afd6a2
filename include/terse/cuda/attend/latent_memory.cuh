/// Shared memory of the kernels that attend to latents: sizes known at the launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/cache/class_shape.hpp"
#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/core/rope.hpp"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/basis.cuh"
#include "terse/policy/position.hpp"
#include "terse/quant/hadamard.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int latent_threads = 256;
/// Query vectors of a KV head that share the rebuilding of its keys, at most.
inline constexpr int most_latent_vectors = 32;

/// What has the same size for all policies.
struct LatentShared {
  WorkScratch work;
  Walk walk;
  Segment segment;
  bool has_segment;
  std::uint64_t masks[most_latent_vectors];  ///< tokens of the block that a vector reads
  std::uint64_t any_mask;                    ///< that some vector reads
  float2 states[most_latent_vectors];        ///< {base, denominator}, log2 units
  float factors[most_latent_vectors];        ///< of the sums so far
  int positions[block_tokens];
  int is_last;
};

/// Places behind LatentShared, in bytes, and their strides, in floats.
struct LatentMemory {
  int vectors = 0;         ///< of a tile: 16 or 32
  int key_tokens = 0;      ///< whose latents are decoded at a time
  int key_channels = 0;    ///< of a latent that are decoded at a time
  int value_channels = 0;  ///< likewise
  int tile_stride = 0;     ///< of `tile [token, key channel]`
  int query_stride = 0;
  int sum_stride = 0;
  int queries = 0;  ///< `[variant, vector, channel]`; the second variant is turned for the prefix
  int scores = 0;   ///< `[variant, vector, token]`
  int sums = 0;     ///< `[vector, value channel]`
  int angles = 0;   ///< per position, `[pair]`, double
  int tile = 0;     ///< decoded latents
  int keys = 0;     ///< rebuilt, `[channel, token]`; and rows of output
  int bytes = 0;    ///< of all

  // In products the lanes (g, t) of a warp read a left operand at g * stride + t and decoded keys,
  // a right one, likewise: strides of 4 more than a multiple of 32 meet no bank twice. They read
  // the other right operands at t * stride + g: 8 more.
  static constexpr int key_stride = block_tokens + 8;
  static constexpr int score_stride = block_tokens + 4;
  [[nodiscard]] TERSE_HOST_DEVICE int value_stride() const noexcept { return value_channels + 8; }
};

/// Latents of a codec with a basis that kernels do not know are turned whole.
template <class Codec>
inline constexpr bool turns_whole = HasBasis<Codec> && !HasHadamard<Codec>;

/// What a kernel needs: column sums read no values.
enum class LatentUse { attention, column_sums };

/// `most_channels`: of a latent that are decoded at a time, where the codec leaves the choice.
template <class Ref>
[[nodiscard]] LatentMemory plan_latents(const ClassShape& shape, const RopeSpec& rope, int vectors,
                                        int most_channels, LatentUse use) noexcept {
  using K = typename Ref::policy::key_codec;
  constexpr int variants = Ref::policy::reindex == Reindex::cache_index ? 2 : 1;
  const int whole_tile_floats = 128 * most_channels;
  const bool sums_values = use == LatentUse::attention;
  LatentMemory m;
  m.vectors = vectors;
  m.key_tokens = block_tokens;
  m.key_channels = round_up(shape.key_width, 8);
  if constexpr (turns_whole<K>) {
    while (m.key_tokens > 8 && m.key_tokens * (m.key_channels + 4) > whole_tile_floats) {
      m.key_tokens /= 2;
    }
  } else {
    int step = most_channels;
    if constexpr (HasHadamard<K>) {
      const int size = hadamard_size(shape.key_width, K::hadamard_limit);
      step = size > step ? size : step;
    }
    m.key_channels = m.key_channels < step ? m.key_channels : step;
  }
  m.value_channels = round_up(shape.value_width, 16);
  m.value_channels = m.value_channels < most_channels ? m.value_channels : most_channels;
  m.tile_stride = m.key_channels + 4;
  m.query_stride = round_up(shape.head_dim, 8) + 4;
  m.sum_stride = round_up(shape.value_width, 16) + 8;
  const int output_stride = round_up(shape.head_dim, 16) + 8;
  const auto larger = [](int a, int b) { return a > b ? a : b; };
  int end = round_up(static_cast<int>(sizeof(LatentShared)), 16);
  const auto take = [&](int floats) {
    const int at = end;
    end += round_up(floats * static_cast<int>(sizeof(float)), 16);
    return at;
  };
  m.queries = take(variants * vectors * m.query_stride);
  m.scores = take(variants * vectors * LatentMemory::score_stride);
  m.sums = take(sums_values ? vectors * m.sum_stride : 0);
  m.angles = take(rope.rotary_dim);  // a double a pair
  m.tile =
      take(larger(m.key_tokens * m.tile_stride, sums_values ? block_tokens * m.value_stride() : 0));
  m.keys = take(
      larger(shape.head_dim * LatentMemory::key_stride, sums_values ? vectors * output_stride : 0));
  m.bytes = end;
  return m;
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
