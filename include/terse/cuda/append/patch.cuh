/// 16-bit numbers of a whole block of one stream in the registers of a thread block: each thread
/// has a patch of four tokens by eight channels, as it came from global memory.
///
/// A warp has 32 channels: of keys 32 neighbouring tokens, because a group of a channel and a
/// stored vector are runs of tokens; of values tokens 16 apart, whose codes share words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/policy/codec.hpp"
#include "terse/quant/fp8.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Channels of a warp's patches. Patches have whole groups of as many numbers, or parts of one.
inline constexpr int patch_span = 32;

/// `words [token][pair of channels]`, the first of a pair in the lower half.
struct Patch {
  std::uint32_t words[4][4];
};

/// Where a thread's patch lies: tokens from 4 * quad, channels from 8 * vector on. Unsigned,
/// because they are divided by powers of two.
struct PatchPlace {
  unsigned quad;
  unsigned vector;

  /// Of the calling thread; `vector` may lie beyond the width, for whole warps.
  template <Side S>
  [[nodiscard]] static __device__ __forceinline__ PatchPlace own() {
    unsigned thread;
    // Volatile, or all that follows from it is computed ahead, by steps of one token too.
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    const unsigned lane = thread % 32, warp = thread / 32;
    const unsigned vector = lane % 4 + warp / 2 * 4;
    if constexpr (S == Side::key) {
      return {lane / 4 + warp % 2 * 8, vector};
    } else {
      return {lane / 4 % 4 * 4 + warp % 2 * 2 + lane / 16, vector};
    }
  }
  [[nodiscard]] __device__ __forceinline__ int token() const { return static_cast<int>(4 * quad); }
  [[nodiscard]] __device__ __forceinline__ int channel() const {
    return static_cast<int>(8 * vector);
  }
};

/// Whether `threads` threads hold a block of `width` channels.
[[nodiscard]] __device__ __forceinline__ bool holds_block(int width, int threads) {
  return width % patch_span == 0 && 2 * width <= threads;
}

/// Reads a patch of a caller's tensor of 16-bit elements whose rows are whole vectors.
[[nodiscard]] __device__ __forceinline__ Patch load_patch(const SourceRows& rows, int head,
                                                          const PatchPlace& place) {
  const std::int64_t row_bytes = rows.in.row_stride * 2;
  const std::byte* from = static_cast<const std::byte*>(rows.in.data) +
                          (head * rows.in.head_stride + place.channel()) * 2;
  std::int64_t row[4];
  if (rows.numbers == nullptr) {
#pragma unroll
    for (int i = 0; i < 4; ++i) row[i] = rows.first + place.token() + i;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) row[i] = rows.numbers[rows.first + place.token() + i];
  }
  Patch patch;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint4 v = __ldcg(reinterpret_cast<const uint4*>(from + row[i] * row_bytes));
    patch.words[i][0] = v.x;
    patch.words[i][1] = v.y;
    patch.words[i][2] = v.z;
    patch.words[i][3] = v.w;
  }
  return patch;
}

/// The lower or upper number of a word of two, in one operation.
template <class T>
[[nodiscard]] __device__ __forceinline__ float number(std::uint32_t word, int half) {
  if constexpr (std::is_same_v<T, F16>) {
    float low, high;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; "
        "cvt.f32.f16 %1, high; }"
        : "=f"(low), "=f"(high)
        : "r"(word));
    return half == 0 ? low : high;
  } else {
    return __uint_as_float(half == 0 ? word << 16 : word & 0xffff0000u);
  }
}

/// Lower (half 0) or upper halves of two words, the first one's below.
[[nodiscard]] __device__ __forceinline__ std::uint32_t halves(std::uint32_t a, std::uint32_t b,
                                                              int half) {
  return __byte_perm(a, b, half == 0 ? 0x5410 : 0x7632);
}

/// The smaller and the larger numbers of two words of two; NaN where one is.
template <class T>
[[nodiscard]] __device__ __forceinline__ std::uint32_t smaller_pair(std::uint32_t a,
                                                                    std::uint32_t b) {
  std::uint32_t c;
  if constexpr (std::is_same_v<T, F16>) {
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  } else {
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  }
  return c;
}
template <class T>
[[nodiscard]] __device__ __forceinline__ std::uint32_t larger_pair(std::uint32_t a,
                                                                   std::uint32_t b) {
  std::uint32_t c;
  if constexpr (std::is_same_v<T, F16>) {
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  } else {
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  }
  return c;
}
[[nodiscard]] __device__ __forceinline__ std::uint32_t absolute_pair(std::uint32_t a) {
  return a & 0x7fff7fffu;
}

/// Whether all of the patch are numbers within what fp16 holds.
template <class T>
[[nodiscard]] __device__ __forceinline__ bool is_within_f16(const Patch& patch) {
  if constexpr (std::is_same_v<T, F16>) {
    std::uint32_t zeros = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t(&w)[4] = patch.words[i];
      zeros |= add_zero_times<F16>({w[0], w[1], w[2], w[3]}, 0);
    }
    return zeros == 0;
  } else {
    std::uint32_t peak = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      peak = larger_pair<T>(absolute_pair(patch.words[i / 4][i % 4]), peak);
    }
    constexpr std::uint32_t most = 0x477f;  // 65280; NaN lies above
    return (peak & 0xffffu) <= most && peak >> 16 <= most;
  }
}

/// Turns bf16 numbers within what fp16 holds into fp16.
__device__ __forceinline__ void make_f16(Patch& patch) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    std::uint32_t& word = patch.words[i / 4][i % 4];
    const float low = number<BF16>(word, 0), high = number<BF16>(word, 1);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
}

/// Stores fp16 numbers in the form of Identity: keys `[channel, token]`, values `[token, channel]`.
template <Side S>
__device__ __forceinline__ void store_f16(const Patch& patch, const PatchPlace& place, int width,
                                          std::byte* block) {
  const auto& w = patch.words;
  auto* numbers = reinterpret_cast<F16*>(block);
  if constexpr (S == Side::key) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      F16* to = numbers + (place.channel() + c) * block_tokens + place.token();
      *reinterpret_cast<uint2*>(to) = {halves(w[0][c / 2], w[1][c / 2], c % 2),
                                       halves(w[2][c / 2], w[3][c / 2], c % 2)};
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      F16* to = numbers + (place.token() + i) * width + place.channel();
      *reinterpret_cast<uint4*>(to) = {w[i][0], w[i][1], w[i][2], w[i][3]};
    }
  }
}

/// Two e4m3 numbers, the first in the lower byte.
[[nodiscard]] __device__ __forceinline__ std::uint32_t e4m3_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t pair;
  asm("{ .reg .b16 half; cvt.rn.satfinite.e4m3x2.f32 half, %1, %2; cvt.u32.u16 %0, half; }"
      : "=r"(pair)
      : "f"(high), "f"(low));
  return pair;
#else
  return static_cast<std::uint32_t>(to_e4m3(low)) | static_cast<std::uint32_t>(to_e4m3(high)) << 8;
#endif
}

/// Stores the numbers as e4m3, keys `[channel, token]` and values `[token, channel]`.
template <Side S, class T>
__device__ __forceinline__ void store_e4m3(const Patch& patch, const PatchPlace& place, int width,
                                           std::byte* block) {
  const auto& w = patch.words;
  if constexpr (S == Side::key) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const auto of = [&](int i) { return number<T>(w[i][c / 2], c % 2); };
      std::byte* to = block + (place.channel() + c) * block_tokens + place.token();
      *reinterpret_cast<std::uint32_t*>(to) =
          halves(e4m3_pair(of(0), of(1)), e4m3_pair(of(2), of(3)), 0);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = [&](int k) {
        return e4m3_pair(number<T>(w[i][k], 0), number<T>(w[i][k], 1));
      };
      std::byte* to = block + (place.token() + i) * width + place.channel();
      *reinterpret_cast<uint2*>(to) = {halves(pair(0), pair(1), 0), halves(pair(2), pair(3), 0)};
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
