/// Encoding of a whole block from the registers of a thread block: the same bytes as from a tile.
///
/// Extremes are found two numbers an operation, on the 16-bit numbers themselves, by each warp for
/// 32 channels of a token or 32 tokens of a channel, and put together in shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/cuda/append/divisor.cuh"
#include "terse/cuda/append/encode.cuh"
#include "terse/cuda/append/patch.cuh"
#include "terse/quant/affine_group.hpp"
#include "terse/quant/codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class C>
[[nodiscard]] constexpr bool patches_serve() noexcept {
  if constexpr (HasBasis<C>) {
    return false;
  } else if constexpr (SplitsEncoding<C>) {
    constexpr AffineFormat format = C::affine_format;
    return !searches_step<C> && !C::needs_largest && format.group % patch_span == 0 &&
           words_per_bundle(format.bits) == 1;
  } else {
    return PlainCodec<C>;
  }
}
/// Whether blocks of the codec can be encoded from patches.
template <class C>
inline constexpr bool encodes_patches = patches_serve<C>();

/// Extremes of runs of 32 numbers, and steps of groups, in shared memory. Runs lie as
/// affine_param_index has groups of 32: `[channels / 32, token]` or `[tokens / 32, channel]`.
template <class C>
struct PatchShared {
  static constexpr bool per_channel = C::granularity == Granularity::per_channel;

  std::uint16_t *lows, *highs;           ///< `[run]`, of magnitudes in `highs` without a minimum
  float *divisors, *inverses, *offsets;  ///< `[group]`, as affine_param_index

  /// `runs [2, 2 * width]`, `steps [3, affine_params]`
  __device__ PatchShared(int width, float* runs, float* steps)
      : lows(reinterpret_cast<std::uint16_t*>(runs)), highs(lows + 2 * width), divisors(steps) {
    constexpr AffineFormat format = C::affine_format;
    inverses = divisors + affine_params(format, width);
    offsets = inverses + affine_params(format, width);
  }
};

/// Of N words each, and those of the lanes `Distance`, 2 * Distance, ... 16 away, the smallest
/// pairs: each round halves what a lane is left with, until it has one, the `index`-th.
template <class T, int Distance, int N>
[[nodiscard]] __device__ __forceinline__ std::uint32_t smallest_over_lanes(
    const std::uint32_t (&words)[N], int& index) {
  constexpr int left = N > 1 ? N / 2 : 1;
  std::uint32_t kept[left];
  const bool upper = (threadIdx.x & Distance) != 0;
#pragma unroll
  for (int k = 0; k < left; ++k) {
    const std::uint32_t own = N > 1 && upper ? words[k + N / 2] : words[k];
    const std::uint32_t given = N > 1 && !upper ? words[k + N / 2] : words[k];
    kept[k] = smaller_pair<T>(own, __shfl_xor_sync(~0u, given, Distance));
  }
  index = 2 * index + (N > 1 && upper ? 1 : 0);
  if constexpr (Distance < 16) {
    return smallest_over_lanes<T, 2 * Distance>(kept, index);
  } else {
    static_assert(left == 1);
    return kept[0];
  }
}

/// Leaves the extremes of the warp's runs in shared memory. By all lanes of a warp.
template <class C, class T>
__device__ __forceinline__ void find_runs(const Patch& patch, const PatchPlace& place, int width,
                                          const PatchShared<C>& shared) {
  constexpr AffineFormat format = C::affine_format;
  const auto& w = patch.words;
  const auto magnitude = [&](std::uint32_t word) {
    return format.has_min ? word : absolute_pair(word);
  };
  if constexpr (PatchShared<C>::per_channel) {
    constexpr std::uint32_t signs = 0x80008000u;
    std::uint32_t ends[format.has_min ? 8 : 4];  // negated highs, then lows
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      std::uint32_t high = magnitude(w[0][k]), low = w[0][k];
#pragma unroll
      for (int i = 1; i < 4; ++i) {
        high = larger_pair<T>(high, magnitude(w[i][k]));
        if constexpr (format.has_min) low = smaller_pair<T>(low, w[i][k]);
      }
      ends[k] = high ^ signs;
      if constexpr (format.has_min) ends[k + 4] = low;
    }
    int index = 0;
    std::uint32_t end = smallest_over_lanes<T, 4>(ends, index);
    if constexpr (!format.has_min) index >>= 1;  // all lanes have met in the last round
    const bool is_low = index >= 4;
    const int run = static_cast<int>(place.quad / 8) * width + place.channel() + index % 4 * 2;
    *reinterpret_cast<std::uint32_t*>((is_low ? shared.lows : shared.highs) + run) =
        is_low ? end : end ^ signs;
  } else {
    std::uint32_t high[2], low[2];  // of tokens 0, 1 and 2, 3
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      std::uint32_t highs[2], lows[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto& row = w[2 * p + i];
        highs[i] = magnitude(row[0]);
        lows[i] = row[0];
#pragma unroll
        for (int k = 1; k < 4; ++k) {
          highs[i] = larger_pair<T>(highs[i], magnitude(row[k]));
          if constexpr (format.has_min) lows[i] = smaller_pair<T>(lows[i], row[k]);
        }
      }
      high[p] = larger_pair<T>(halves(highs[0], highs[1], 0), halves(highs[0], highs[1], 1));
      low[p] = smaller_pair<T>(halves(lows[0], lows[1], 0), halves(lows[0], lows[1], 1));
#pragma unroll
      for (int d = 1; d < 4; d *= 2) {
        high[p] = larger_pair<T>(high[p], __shfl_xor_sync(~0u, high[p], d));
        if constexpr (format.has_min) {
          low[p] = smaller_pair<T>(low[p], __shfl_xor_sync(~0u, low[p], d));
        }
      }
    }
    const int run = static_cast<int>(place.vector / 4) * block_tokens + place.token();
    if (place.vector % 4 == 0) *reinterpret_cast<uint2*>(shared.highs + run) = {high[0], high[1]};
    if (format.has_min && place.vector % 4 == 1) {
      *reinterpret_cast<uint2*>(shared.lows + run) = {low[0], low[1]};
    }
  }
}

/// Finds and stores the parameters of the block's groups from their runs. By all threads.
template <class C, class T>
__device__ __forceinline__ void find_groups(const CodecContext& context,
                                            const PatchShared<C>& shared, std::byte* block) {
  constexpr AffineFormat format = C::affine_format;
  constexpr bool per_channel = PatchShared<C>::per_channel;
  const int width = context.width;
  const int across = per_channel ? width : block_tokens;  // groups side by side
  const int runs = (per_channel ? block_tokens : width) / patch_span;
  const int runs_per_group = format.group == 0 ? runs : format.group / patch_span;
  const Divisor by_across = Divisor::of(across);
  const int groups = affine_params(format, width);
  for (int i = static_cast<int>(threadIdx.x); i < groups; i += static_cast<int>(blockDim.x)) {
    const int row = by_across.quotient(i), at = i - row * across;
    const int first = row * runs_per_group;
    const int end = first + runs_per_group < runs ? first + runs_per_group : runs;
    float low = 0.0f;
    if constexpr (format.has_min) low = to_float(T{shared.lows[first * across + at]});
    float high = to_float(T{shared.highs[first * across + at]});
#pragma unroll 4
    for (int r = first + 1; r < end; ++r) {
      if constexpr (format.has_min) low = fminf(low, to_float(T{shared.lows[r * across + at]}));
      high = fmaxf(high, to_float(T{shared.highs[r * across + at]}));
    }
    const typename C::Extremes e{low + 0.0f, high + 0.0f, 0.0f};
    const typename C::Group g = C::find_group(e, nullptr, 1, 0);
    shared.divisors[i] = g.step.divisor;
    shared.inverses[i] = g.step.inverse;
    if constexpr (format.has_min) shared.offsets[i] = g.step.offset;
    const int first_of_group = first * patch_span;
    C::store_group(context, per_channel ? first_of_group : at, per_channel ? at : first_of_group, g,
                   block);
  }
}

/// Codes of two numbers, in the halves of a word.
template <class C>
[[nodiscard]] __device__ __forceinline__ std::uint32_t pair_of_codes(
    float a, const typename C::Step& step_a, float b, const typename C::Step& step_b) {
  if constexpr (requires { C::unlimited_code(a, step_a); }) {
    constexpr unsigned top = C::top_code;
    return __vimin_s16x2_relu(halves(C::unlimited_code(a, step_a), C::unlimited_code(b, step_b), 0),
                              top | top << 16);
  } else {
    return halves(C::code_of(a, step_a), C::code_of(b, step_b), 0);
  }
}

/// Two lanes `Distance` apart have parts of the same words, the upper lane those that are `Shift`
/// bits further up: each is left with half of the words, whole, the upper lane with the upper ones.
template <int Distance, int Shift, int N>
__device__ __forceinline__ void join_words(const std::uint32_t (&parts)[N],
                                           std::uint32_t (&words)[N / 2]) {
  const bool upper = (threadIdx.x & Distance) != 0;
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    const std::uint32_t own = upper ? parts[k + N / 2] : parts[k];
    const std::uint32_t given = upper ? parts[k] : parts[k + N / 2];
    const std::uint32_t got = __shfl_xor_sync(~0u, given, Distance);
    words[k] = upper ? got + (own << Shift) : own + (got << Shift);
  }
}

/// Computes and stores the patch's codes. By all lanes of a warp.
template <class C, Side S, class T>
__device__ __forceinline__ void store_codes(const Patch& patch, const PatchPlace& place, int width,
                                            const PatchShared<C>& shared, std::byte* block) {
  constexpr AffineFormat format = C::affine_format;
  constexpr int bits = format.bits;
  constexpr bool per_channel = PatchShared<C>::per_channel;
  constexpr int num_steps = per_channel ? 8 : 4;
  const int first_param = affine_param_index(format, width, place.token(), place.channel());
  typename C::Step steps[num_steps];
#pragma unroll
  for (int s = 0; s < num_steps; s += 4) {
    const auto four = [&](const float* of) {
      return *reinterpret_cast<const float4*>(of + first_param + s);
    };
    const float4 divisor = four(shared.divisors), inverse = four(shared.inverses);
    const float4 offset = format.has_min ? four(shared.offsets) : float4{};
    steps[s] = {divisor.x, inverse.x, offset.x};
    steps[s + 1] = {divisor.y, inverse.y, offset.y};
    steps[s + 2] = {divisor.z, inverse.z, offset.z};
    steps[s + 3] = {divisor.w, inverse.w, offset.w};
  }
  const auto code_pair = [&](int token_a, int channel_a, int token_b, int channel_b) {
    return pair_of_codes<C>(number<T>(patch.words[token_a][channel_a / 2], channel_a % 2),
                            steps[per_channel ? channel_a : token_a],
                            number<T>(patch.words[token_b][channel_b / 2], channel_b % 2),
                            steps[per_channel ? channel_b : token_b]);
  };
  auto* words = reinterpret_cast<std::uint32_t*>(block);
  const auto vector_of = [&](unsigned tile, unsigned run) {
    return words +
           bundle_vector(bits, S, width, static_cast<int>(tile), static_cast<int>(run)) * 16;
  };
  // Codes of neighbours lie 16 bits apart, those of the next two neighbours a byte further up.
  if constexpr (S == Side::key) {
    const unsigned tile = place.quad / 4, lane = place.quad % 4 * 4;
    const auto bytes = [&](int token, int channel) {
      return code_pair(token, channel, token, channel + 1) +
             (code_pair(token, channel + 2, token, channel + 3) << 8);
    };
    if constexpr (bits == 8) {
#pragma unroll
      for (unsigned h = 0; h < 2; ++h) {
        const int c = static_cast<int>(4 * h);
        *reinterpret_cast<uint4*>(vector_of(tile, 2 * place.vector + h) + lane) = {
            bytes(0, c), bytes(1, c), bytes(2, c), bytes(3, c)};
      }
    } else {
      std::uint32_t fields[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) fields[i] = bytes(i, 0) + (bytes(i, 4) << bits);
      if constexpr (bits == 4) {
        *reinterpret_cast<uint4*>(vector_of(tile, place.vector) + lane) = {fields[0], fields[1],
                                                                           fields[2], fields[3]};
      } else {
        std::uint32_t own[2];
        join_words<1, 2 * bits>(fields, own);
        *reinterpret_cast<uint2*>(vector_of(tile, place.vector / 2) + lane +
                                  place.vector % 2 * 2) = {own[0], own[1]};
      }
    }
  } else {
    const unsigned tile = place.vector / 2, lane = place.vector % 2 * 8;
    std::uint32_t fields[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) fields[c] = code_pair(0, c, 1, c) + (code_pair(2, c, 3, c) << 8);
    if constexpr (bits == 8) {
      // Of two neighbours' sectors of 32 bytes each lane stores half, so that sectors are whole.
      const bool upper = place.vector % 2 != 0;
      std::uint32_t first[4], second[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const std::uint32_t got = __shfl_xor_sync(~0u, upper ? fields[c] : fields[c + 4], 1);
        first[c] = upper ? got : fields[c];
        second[c] = upper ? fields[c + 4] : got;
      }
      auto* to = reinterpret_cast<uint4*>(vector_of(tile, place.quad)) + place.vector % 2;
      to[0] = {first[0], first[1], first[2], first[3]};
      to[2] = {second[0], second[1], second[2], second[3]};
    } else {
      const unsigned of_16 = place.quad / 4;
      std::uint32_t pairs[4];
      join_words<4, bits>(fields, pairs);
      if constexpr (bits == 4) {
        std::uint32_t* to = vector_of(tile, of_16 / 2 * 4 + place.quad % 4) + lane;
        reinterpret_cast<uint4*>(to)[of_16 % 2] = {pairs[0], pairs[1], pairs[2], pairs[3]};
      } else {
        std::uint32_t own[2];
        join_words<8, 2 * bits>(pairs, own);
        std::uint32_t* to = vector_of(tile, place.quad % 4) + lane;
        reinterpret_cast<uint2*>(to)[of_16 % 2 * 2 + of_16 / 2] = {own[0], own[1]};
      }
    }
  }
}

/// Finds what the block's parameters follow from, before all threads meet. `runs [2, 2 * width]`
/// and `steps [3, affine_params]` are shared memory.
template <class C, class T>
__device__ __forceinline__ void begin_patches(const Patch& patch, const PatchPlace& place,
                                              int width, float* runs, float* steps) {
  if constexpr (SplitsEncoding<C>) {
    if (place.channel() < width) {  // the same in a warp
      find_runs<C, T>(patch, place, width, PatchShared<C>(width, runs, steps));
    }
  }
}

/// Encodes a block that is in the codec's basis, after begin_patches. By all threads, which do not
/// meet at the end.
template <class C, Side S, class T>
__device__ __forceinline__ void encode_patches(const Patch& patch, const PatchPlace& place,
                                               int width, float* runs, float* steps,
                                               std::byte* block) {
  const bool has_patch = place.channel() < width;
  if constexpr (SplitsEncoding<C>) {
    const PatchShared<C> shared(width, runs, steps);
    find_groups<C, T>(CodecContext{S, width}, shared, block);
    __syncthreads();
    if (has_patch) store_codes<C, S, T>(patch, place, width, shared, block);
  } else if constexpr (C::plain_format == PlainFormat::e4m3) {
    if (has_patch) store_e4m3<S, T>(patch, place, width, block);
  } else if (has_patch) {
    Patch rounded = patch;
    if constexpr (std::is_same_v<T, BF16>) make_f16(rounded);
    store_f16<S>(rounded, place, width, block);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
