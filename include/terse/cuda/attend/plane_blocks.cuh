/// Logits and value sums of blocks of fp16 numbers in planes, of which a warp copies to shared
/// memory what a plan says, and a constant for the rest. Tokens and channels lie in lanes as in
/// plain_blocks.cuh.
///
/// Keys and values of a block come in four pieces each: a quarter of the channels, or 16 tokens.
/// A piece's place holds its stretch of each plane, one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_fp16.h>

#include "terse/config.hpp"
#include "terse/cuda/attend/plain_blocks.cuh"
#include "terse/cuda/attend/plane_plan.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/quant/plane_exponents.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Eight neighbouring elements of a run.
struct PlaneWords {
  uint2 first;
  std::uint32_t second, third;
};

/// Pieces of the keys or values of a block, and places of a warp for them.
inline constexpr int plane_pieces = 4;

/// Begins to copy 16 bytes to shared memory, or zeros if `reads` is 0.
__device__ __forceinline__ void copy_or_zero(std::uint32_t to, const std::byte* from,
                                             std::uint32_t reads) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, %2, 0;"
      "cp.async.cg.shared.global [%0], [%1], 16, p;}" ::"r"(to),
      "l"(from), "r"(reads)
      : "memory");
}
/// Keeps an address in registers, so that copies from near it name it and a constant.
__device__ __forceinline__ const std::byte* pinned(const std::byte* address) {
  asm volatile("" : "+l"(address));
  return address;
}
/// Ends a piece: copies since the last end belong to it.
__device__ __forceinline__ void end_piece() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits for all pieces but the last `Pending`. By all lanes.
template <int Pending>
__device__ __forceinline__ void wait_for_pieces() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
  __syncwarp();
}

/// Eight elements of each of two runs as pairs {a, b} of fp16.
__device__ __forceinline__ void pair_up(const PlaneWords& a, const PlaneWords& b,
                                        std::uint32_t (&pairs)[8]) {
  constexpr std::uint32_t upper = 0xf0f0f0f0u, flipped = 0x88888888u;  // Planes::unread_bits
  const auto low = [](const PlaneWords& w) {
    return (((w.second << 4) & upper) | (w.third & ~upper)) ^ flipped;
  };
  const auto high = [](const PlaneWords& w) {
    return ((w.second & upper) | ((w.third >> 4) & ~upper)) ^ flipped;
  };
  const std::uint32_t tops[2][2] = {{a.first.x, b.first.x}, {a.first.y, b.first.y}};
  const std::uint32_t ends[2][2] = {{low(a), low(b)}, {high(a), high(b)}};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const unsigned bytes = k == 0 ? 0x5140u : 0x7362u;
      const std::uint32_t top = __byte_perm(tops[i][0], tops[i][1], bytes);
      const std::uint32_t end = __byte_perm(ends[i][0], ends[i][1], bytes);
      pairs[4 * i + 2 * k] = __byte_perm(end, top, 0x5140);
      pairs[4 * i + 2 * k + 1] = __byte_perm(end, top, 0x7362);
    }
  }
}

template <class Codec, int Width, int Tiles>
struct PlaneKeys {
  static constexpr bool supported = ExponentPlanes<Codec> && (Width == 64 || Width == 128);
  static constexpr int piece_channels = Width / plane_pieces;
  static constexpr int piece_bytes = piece_channels * 128;
  static constexpr int steps = piece_channels / 16;
  static constexpr unsigned second_place = piece_channels * 64, third_place = piece_channels * 96;
  static constexpr std::size_t second_offset = Codec::plane_offset(1, Width);
  static constexpr std::size_t third_offset = Codec::plane_offset(2, Width);
  static constexpr std::size_t exponents_offset = Codec::plane_offset(3, Width);
  using Order = PlainTokenOrder;
  using Plan = KeyPlan<Codec, Width>;

  /// Shared addresses of the calling lane in the place of piece 0. Bits 5 and 6 of an offset in a
  /// plane's stretch are turned by its channel's bits, so that lanes meet in no bank: addresses of
  /// elements of even and odd channels in the first plane and in the others; of copies.
  struct Places {
    std::uint32_t first[2], halves[2], first_to, halves_to, queries;
    unsigned channel, half_channel;  ///< bits of those that it copies, of 32
  };
  /// `queries [vector, stride]`: shared memory.
  __device__ __forceinline__ static Places places(std::uint32_t base, const __half* queries,
                                                  int stride) {
    const Lane lane = this_lane();
    const auto l = static_cast<unsigned>(lane.index), g = static_cast<unsigned>(lane.g),
               t = static_cast<unsigned>(lane.t);
    Places at;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      at.first[i] = pinned(base + ((128 * t + 8 * g + 64 * i) ^ 32 * t));
      at.halves[i] = pinned(base + ((64 * t + 4 * g + 32 * i) ^ 32 * (t / 2)));
    }
    at.first_to = pinned(base + (l * 16 ^ 32 * (l / 8)));
    at.halves_to = pinned(base + (l * 16 ^ 32 * (l / 8 % 2)));
    // Lanes that name matrices beyond a piece's steps name those of its steps.
    at.queries = pinned(
        shared_address(queries + (lane.index % 8) * stride + lane.index / 8 % (2 * steps) * 8));
    at.channel = pinned(1u << l / 4);
    at.half_channel = pinned(1u << l / 2);
    return at;
  }

  /// Begins to copy piece `i` of the channels from `first` on, with which `plan` begins, `offset`
  /// bytes behind the place of piece 0. By all lanes.
  __device__ __forceinline__ static void fetch(const std::byte* block, int first, int i,
                                               const Plan& plan, const Places& at,
                                               std::uint32_t offset) {
    const std::byte* from = pinned(block + (first * 64 + static_cast<int>(threadIdx.x % 32) * 16));
    const std::byte* half_from = pinned(from - first * 32);
    const std::uint32_t first_to = at.first_to + offset, halves_to = at.halves_to + offset;
#pragma unroll
    for (int k = 0; k < piece_channels / 8; ++k) {  // four lanes a channel
      const int c = i * piece_channels + 8 * k;
      copy_or_zero(first_to + static_cast<unsigned>(k) * 512u, from + c * 64,
                   plan.reads[c / 32][0] & at.channel << c % 32);
    }
#pragma unroll
    for (int k = 0; k < piece_channels / 16; ++k) {  // two lanes
      const int c = i * piece_channels + 16 * k;
      const unsigned to = static_cast<unsigned>(k) * 512u;
      copy_or_zero(halves_to + (second_place + to), half_from + (second_offset + c * 32),
                   plan.reads[c / 32][1] & at.half_channel << c % 32);
      copy_or_zero(halves_to + (third_place + to), half_from + (third_offset + c * 32),
                   plan.reads[c / 32][2] & at.half_channel << c % 32);
    }
  }

  /// products += keys * queries, of piece `i` in its place, `place_bytes` apart.
  __device__ __forceinline__ static void multiply(const Places& at, int i, unsigned place_bytes,
                                                  int stride, float (&products)[Tiles][4][4]) {
    const auto piece = static_cast<unsigned>(i);
    const std::uint32_t offset = piece * place_bytes;
    const std::uint32_t first[2] = {at.first[0] + offset, at.first[1] + offset};
    const std::uint32_t halves[2] = {at.halves[0] + offset, at.halves[1] + offset};
    const auto load = [&](unsigned c, unsigned odd) {
      return PlaneWords{load_shared_8(first[odd] + c * 64u),
                        load_shared_4(halves[odd] + (second_place + c * 32u)),
                        load_shared_4(halves[odd] + (third_place + c * 32u))};
    };
    // Matrices of 8 vectors and 8 channels, two a step.
    std::uint32_t q[Tiles][4];
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      load_matrices(q[n], at.queries + static_cast<unsigned>(16 * n * stride) +
                              piece * (piece_channels * 2u));
    }
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      const unsigned c = 16u * static_cast<unsigned>(k);
      std::uint32_t lo[8], hi[8];
      pair_up(load(c, 0), load(c, 1), lo);
      pair_up(load(c + 8, 0), load(c + 8, 1), hi);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          multiply_add(products[n][m], lo[2 * m], lo[2 * m + 1], hi[2 * m], hi[2 * m + 1],
                       q[n][2 * k], q[n][2 * k + 1]);
        }
      }
    }
  }

  /// Logits relative to the bases.
  __device__ __forceinline__ static void finish(const float (&products)[Tiles][4][4],
                                                const float (&norm)[Tiles][2],
                                                const float (&base)[Tiles][2],
                                                float (&s)[Tiles][4][4]) {
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

template <class Codec, int Width, int Tiles>
struct PlaneValues : PlainSums<Width, Tiles> {
  static constexpr bool supported = ExponentPlanes<Codec> && (Width == 64 || Width == 128);
  static constexpr bool steps_interleaved = false;
  static constexpr int piece_tokens = block_tokens / plane_pieces;
  static constexpr int piece_bytes = piece_tokens * Width * 2;
  static constexpr unsigned second_place = piece_tokens * Width;
  static constexpr unsigned third_place = second_place + piece_tokens * Width / 2;
  static constexpr std::size_t second_offset = Codec::plane_offset(1, Width);
  static constexpr std::size_t third_offset = Codec::plane_offset(2, Width);
  static constexpr std::size_t exponents_offset = Codec::plane_offset(3, Width);
  using Plan = ValuePlan<Codec>;
  using typename PlainSums<Width, Tiles>::Sums;
  using PlainSums<Width, Tiles>::runs;

  /// As of keys: bits 5 and 6 are turned by bits 2 and 3 of the token, and there is an address of
  /// elements for each value that these bits have.
  struct Places {
    std::uint32_t first[2], halves[4];
    std::uint32_t first_to[Width / 32], halves_to[Width / 64];
  };
  __device__ __forceinline__ static Places places(std::uint32_t base) {
    const Lane lane = this_lane();
    const auto l = static_cast<unsigned>(lane.index), g = static_cast<unsigned>(lane.g),
               t = static_cast<unsigned>(lane.t);
    Places at;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      at.first[i] = pinned(base + ((4 * t * Width + 8 * g + 64 * i) ^ 32 * t));
    }
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      at.halves[i] = pinned(base + ((2 * t * Width + 4 * g + 32 * i) ^ 32 * t));
    }
#pragma unroll
    for (unsigned k = 0; k < Width / 32; ++k) {
      const unsigned offset = k * 512 + l * 16;
      at.first_to[k] = pinned(base + (offset ^ offset / Width / 4 % 4 * 32));
    }
#pragma unroll
    for (unsigned k = 0; k < Width / 64; ++k) {
      const unsigned offset = k * 512 + l * 16;
      at.halves_to[k] = pinned(base + (offset ^ offset / (Width / 2) / 4 % 4 * 32));
    }
    return at;
  }

  /// Begins to copy the block, piece after piece, each to its place, `place_bytes` apart. By all
  /// lanes.
  __device__ __forceinline__ static void fetch(const std::byte* block, const Plan& plan,
                                               const Places& at, unsigned place_bytes) {
    const std::byte* from = pinned(block + static_cast<int>(threadIdx.x % 32) * 16);
    const unsigned first = own_tokens<Width>(plan.reads[0][0], plan.reads[1][0]);
    const unsigned second = own_tokens<Width / 2>(plan.reads[0][1], plan.reads[1][1]);
    const unsigned third = own_tokens<Width / 2>(plan.reads[0][2], plan.reads[1][2]);
#pragma unroll
    for (int i = 0; i < plane_pieces; ++i) {
      const std::uint32_t offset = static_cast<unsigned>(i) * place_bytes;
#pragma unroll
      for (int k = 0; k < Width / 32; ++k) {
        const int bytes = i * piece_tokens * Width + k * 512;
        copy_or_zero(at.first_to[k] + offset, from + bytes, first & 1u << bytes / Width / 2);
      }
#pragma unroll
      for (int k = 0; k < Width / 64; ++k) {
        const int bytes = i * piece_tokens * (Width / 2) + k * 512;
        const unsigned bit = 1u << bytes / (Width / 2) / 2;
        copy_or_zero(at.halves_to[k] + (offset + second_place), from + (second_offset + bytes),
                     second & bit);
        copy_or_zero(at.halves_to[k] + (offset + third_place), from + (third_offset + bytes),
                     third & bit);
      }
      end_piece();
    }
  }

  /// sums += p * values, of a piece `offset` bytes behind the place of piece 0. `p [tile, 2]`: the
  /// piece's half of what load_transposed gave.
  __device__ __forceinline__ static void add(const Places& at, std::uint32_t offset,
                                             const std::uint32_t (&p)[Tiles][2], Sums& sums) {
    constexpr std::uint32_t one = 0x3c003c00u;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      multiply_add(sums.ones[n], one, one, one, one, p[n][0], p[n][1]);
    }
    const auto load = [&](unsigned j, unsigned run) {
      const unsigned first = j * Width + 64u * run, halves = j * Width / 2 + 32u * run;
      const std::uint32_t half_at =
          at.halves[halves / 32 % 4] + offset + (halves / 128 * 128 + second_place);
      return PlaneWords{load_shared_8(at.first[first / 64 % 2] + offset + first / 128 * 128),
                        load_shared_4(half_at),
                        load_shared_4(half_at + (third_place - second_place))};
    };
#pragma unroll
    for (int run = 0; run < runs; ++run) {
      const auto r = static_cast<unsigned>(run);
      std::uint32_t lo[8], hi[8];
      pair_up(load(0, r), load(1, r), lo);
      pair_up(load(2, r), load(3, r), hi);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          multiply_add(sums.values[n][4 * run + m], lo[2 * m], lo[2 * m + 1], hi[2 * m],
                       hi[2 * m + 1], p[n][0], p[n][1]);
        }
      }
    }
  }

 private:
  /// Bit t / 2: whether a plane is read of the calling lane's token among `t` and those that
  /// follow, where a token has `RowBytes` and 16 are a lane's. `even` and `odd`: of all tokens.
  template <int RowBytes>
  [[nodiscard]] __device__ __forceinline__ static unsigned own_tokens(unsigned even, unsigned odd) {
    const int token = static_cast<int>(threadIdx.x % 32) / (RowBytes / 16);
    return (token % 2 == 0 ? even : odd) >> token / 2;
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
