/// Logits and value sums of blocks whose elements are fp16 or e4m3 numbers without parameters.
///
/// Keys lie `[channel, token]`: a lane reads eight neighbouring tokens of a channel and pairs two
/// channels by byte permutes, so row g of m-tile m is token 8g + 2m, and row g + 8 the one after
/// it. Values lie `[token, channel]`, likewise: row g of m-tile 4c + m is channel 64c + 8g + 2m.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/warp/operands.cuh"
#include "terse/policy/codec.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

struct PlainTokenOrder {
  __device__ static constexpr int token(int tile, int half, int g) {
    return 8 * g + 2 * tile + half;
  }
  /// As AffineTokenOrder's.
  __device__ static constexpr int swizzle(int tile, int half) { return tile / 2 * 2 + 4 * half; }
  __device__ static constexpr int row(int tile, int half, int g) {
    return (tile * 2 + half) * 8 + (g ^ swizzle(tile, half));
  }
  __device__ static constexpr int row_of_token(int token) {
    return row(token / 2 % 4, token % 2, token / 8);
  }
};

/// Eight neighbouring elements of each of two vectors as pairs {first, second} of fp16.
template <PlainFormat Format>
__device__ __forceinline__ void pair_up(std::uint32_t first, std::uint32_t second,
                                        std::uint32_t (&pairs)[8]) {
  if constexpr (Format == PlainFormat::f16) {
    const uint4 x = load_shared_16(first), y = load_shared_16(second);
    const std::uint32_t a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[2 * i] = __byte_perm(a[i], b[i], 0x5410);
      pairs[2 * i + 1] = __byte_perm(a[i], b[i], 0x7632);
    }
  } else {
    const uint2 x = load_shared_8(first), y = load_shared_8(second);
    const std::uint32_t a[2] = {x.x, x.y}, b[2] = {y.x, y.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t low = __byte_perm(a[i], b[i], 0x5140);
      const std::uint32_t high = __byte_perm(a[i], b[i], 0x7362);
      pairs[4 * i] = e4m3_to_half2(low);
      pairs[4 * i + 1] = e4m3_to_half2(low >> 16);
      pairs[4 * i + 2] = e4m3_to_half2(high);
      pairs[4 * i + 3] = e4m3_to_half2(high >> 16);
    }
  }
}

template <PlainFormat Format>
inline constexpr int plain_bytes = Format == PlainFormat::f16 ? 2 : 1;

template <class Codec, int Width, int Tiles>
struct PlainKeys {
  static constexpr PlainFormat format = Codec::plain_format;
  static constexpr bool supported = Width % 16 == 0;
  static constexpr int steps = Width / 16;
  using Order = PlainTokenOrder;

  struct Query {
    std::uint32_t q[Tiles][steps][2];
    std::uint32_t tokens_at;  // where the lane's tokens begin
  };

  __device__ static void load_query(Query& query, int tile, const __half* q, int stride) {
    const Lane lane = this_lane();
    query.tokens_at =
        pinned(static_cast<std::uint32_t>((lane.t * 64 + lane.g * 8) * plain_bytes<format>));
    const __half* row = q + lane.g * stride;
#pragma unroll
    for (int k = 0; k < steps; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = 16 * k + 8 * i + lane.t;
        const __half2 pair = __halves2half2(row[c], row[c + 4]);
        query.q[tile][k][i] = *reinterpret_cast<const std::uint32_t*>(&pair);
      }
    }
  }

  __device__ __forceinline__ static void logits(std::uint32_t block, const Query& query,
                                                const float (&norm)[Tiles][2],
                                                const float (&base)[Tiles][2],
                                                float (&s)[Tiles][4][4]) {
    constexpr unsigned bytes = plain_bytes<format>;
    float products[Tiles][4][4] = {};
    const std::uint32_t tokens = block + query.tokens_at;
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      const std::uint32_t at = tokens + static_cast<unsigned>(k) * 16u * 64u * bytes;
      std::uint32_t lo[8], hi[8];
      pair_up<format>(at, at + 4u * 64u * bytes, lo);
      pair_up<format>(at + 8u * 64u * bytes, at + 12u * 64u * bytes, hi);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
          multiply_add(products[n][m], lo[2 * m], lo[2 * m + 1], hi[2 * m], hi[2 * m + 1],
                       query.q[n][k][0], query.q[n][k][1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[n][m][i] = __fmaf_rn(products[n][m][i], norm[n][i & 1], -base[n][i & 1]);
        }
      }
    }
  }
};

/// Value sums of rows that hold eight neighbouring channels a lane, and how to leave them.
template <int Width, int Tiles>
struct PlainSums {
  static constexpr int runs = ceil_div(Width, 64);
  static constexpr int row_tiles = 4 * runs;

  struct Sums {
    float values[Tiles][row_tiles][4] = {};
    float ones[Tiles][4] = {};
  };

  __device__ static constexpr int channel(int row_tile, int half, int g) {
    return 64 * (row_tile / 4) + 8 * g + 2 * (row_tile % 4) + half;
  }

  __device__ __forceinline__ static void scale(Sums& sums, int n, float c0, float c1) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      sums.values[n][r][0] *= c0;
      sums.values[n][r][1] *= c1;
      sums.values[n][r][2] *= c0;
      sums.values[n][r][3] *= c1;
    }
    sums.ones[n][0] *= c0;
    sums.ones[n][1] *= c1;
  }

  __device__ static void finish(const Sums& sums, int n, float (&out)[row_tiles][4],
                                float (&denominator)[2]) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[r][i] = sums.values[n][r][i];
    }
    denominator[0] = sums.ones[n][0];
    denominator[1] = sums.ones[n][1];
  }
};

template <class Codec, int Width, int Tiles>
struct PlainValues : PlainSums<Width, Tiles> {
  static constexpr PlainFormat format = Codec::plain_format;
  static constexpr bool supported = Width % 16 == 0;
  static constexpr bool steps_interleaved = false;

  using typename PlainSums<Width, Tiles>::Sums;
  using PlainSums<Width, Tiles>::runs;

  /// Where the lane's numbers begin in a block.
  struct Places {
    std::uint32_t channels;
  };
  __device__ __forceinline__ static Places places(std::uint32_t) {
    const Lane lane = this_lane();
    return {pinned(
        static_cast<std::uint32_t>((4 * lane.t * Width + 8 * lane.g) * plain_bytes<format>))};
  }

  /// sums += p * values. `p [tile, pair of steps]` as load_transposed gave them.
  __device__ __forceinline__ static void add(std::uint32_t block, const Places& places,
                                             const std::uint32_t (&p)[Tiles][2][4], Sums& sums) {
    const Lane lane = this_lane();
    constexpr unsigned bytes = plain_bytes<format>;
    constexpr std::uint32_t one = 0x3c003c00u;
    const std::uint32_t first = block + places.channels;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int pair = step / 2, at = step % 2 * 2;
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        multiply_add(sums.ones[n], one, one, one, one, p[n][pair][at], p[n][pair][at + 1]);
      }
#pragma unroll
      for (int run = 0; run < runs; ++run) {
        // Lanes beyond the width read the last channels in place of their own.
        const int over = Width % 64 != 0 ? 64 * run + 8 * lane.g - (Width - 8) : 0;
        const std::uint32_t channels = first +
                                       static_cast<unsigned>(16 * step * Width + 64 * run) * bytes -
                                       static_cast<unsigned>(over > 0 ? over : 0) * bytes;
        std::uint32_t lo[8], hi[8];
        pair_up<format>(channels, channels + Width * bytes, lo);
        pair_up<format>(channels + 2u * Width * bytes, channels + 3u * Width * bytes, hi);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int n = 0; n < Tiles; ++n) {
            multiply_add(sums.values[n][4 * run + m], lo[2 * m], lo[2 * m + 1], hi[2 * m],
                         hi[2 * m + 1], p[n][pair][at], p[n][pair][at + 1]);
          }
        }
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
