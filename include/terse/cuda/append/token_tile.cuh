/// Tokens of one stream in the shared memory of a thread block, and ways to and from global memory.
///
/// Sixteen bytes a lane: a warp takes a patch of eight rows by four vectors. With an odd stride the
/// lanes then meet in no bank of shared memory, and global memory sees whole sectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/core/head_rows.hpp"
#include "terse/core/math.hpp"
#include "terse/core/rope.hpp"
#include "terse/core/scalar.hpp"
#include "terse/cuda/append/divisor.cuh"
#include "terse/policy/identity.hpp"
#include "terse/quant/fp8.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Tokens of a block `[token, channel]` in shared memory; row t is token t of the block.
struct TokenTile {
  float* x;
  int stride;  ///< floats from one token to the next
  int first;   ///< tokens that are to be encoded: from this one
  int count;

  [[nodiscard]] __device__ __forceinline__ float* row(int token) const {
    return x + token * stride;
  }
};

/// Calls `load(row, vector)` and `use(row, vector, loaded)` for all `vectors` of all `rows`, by all
/// threads of the block. `Batch` loads are in flight.
template <int Batch = 4, class Load, class Use>
__device__ __forceinline__ void for_each_patch(int rows, int vectors, Load&& load, Use&& use) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  const int across = ceil_div(vectors, 4), patches = ceil_div(rows, 8) * across;
  const Divisor by_across = Divisor::of(across);
  for (int p = static_cast<int>(threadIdx.x) / 32; p < patches; p += warps * Batch) {
    uint4 loaded[Batch] = {};
    int row[Batch], vector[Batch];
#pragma unroll
    for (int k = 0; k < Batch; ++k) {
      const int patch = p + k * warps;
      const int down = by_across.quotient(patch);
      row[k] = down * 8 + lane / 4;
      vector[k] = (patch - down * across) * 4 + lane % 4;
      if (row[k] >= rows || vector[k] >= vectors) row[k] = -1;
      if (row[k] >= 0) loaded[k] = load(row[k], vector[k]);
    }
#pragma unroll
    for (int k = 0; k < Batch; ++k) {
      if (row[k] >= 0) use(row[k], vector[k], loaded[k]);
    }
  }
}

/// The `i`-th fp32 value of a vector of elements of type T.
template <class T>
[[nodiscard]] __device__ __forceinline__ float element(const uint4& vector, int i) {
  const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(words[i]);
  } else {
    const auto half = static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16));
    return to_float(T{half});
  }
}

/// Rows of a caller's tensor `[row, head, channel]` that a tile is filled with.
struct SourceRows {
  const HeadRows& in;
  int first;                    ///< row of the step
  const std::int64_t* numbers;  ///< `[row of the step]` of rows of the tensor; null: the same

  /// Row of the tensor that is row `row` of the tile.
  [[nodiscard]] __device__ __forceinline__ std::int64_t row(int row) const {
    return numbers == nullptr ? first + row : numbers[first + row];
  }
};

/// `sum` plus zero times each number of a vector of elements of type T: zero as long as all are
/// numbers. Of 16 bits a word holds two sums.
template <class T>
[[nodiscard]] __device__ __forceinline__ std::uint32_t add_zero_times(const uint4& vector,
                                                                      std::uint32_t sum) {
  const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (const std::uint32_t word : words) {
    if constexpr (std::is_same_v<T, F16>) {
      asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(0));
    } else if constexpr (std::is_same_v<T, BF16>) {
      asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(0));
    } else {
      sum = __float_as_uint(__fmaf_rn(__uint_as_float(word), 0.0f, __uint_as_float(sum)));
    }
  }
  return sum;
}

/// What a tile makes of a number: within what 16 bits hold, or that rounded to them.
[[nodiscard]] __device__ __forceinline__ float limit_number(float x, bool rounds) {
  return rounds ? to_float(to_f16_saturating(x)) : fminf(fmaxf(x, -f16_max), f16_max);
}

/// Reads rows of a caller's tensor of elements of `Bytes` bytes into the tile; `rounds`:
/// limit_number's. `Gathers`: rows have numbers; one load is in flight then, so that registers are
/// left for the others. By all threads; returns whether this thread's numbers are numbers.
template <int Bytes, bool Gathers>
[[nodiscard]] __device__ bool load_vectors(const SourceRows& rows, int head, int width,
                                           const TokenTile& tile, bool rounds) {
  constexpr int per_vector = 16 / Bytes;
  const Scalar scalar = rows.in.scalar;
  const std::int64_t row_bytes = rows.in.row_stride * Bytes;
  const std::byte* from = static_cast<const std::byte*>(rows.in.data) +
                          (Gathers ? 0 : rows.first * row_bytes) +
                          head * rows.in.head_stride * Bytes;
  std::uint32_t zero = 0;
  for_each_patch<Gathers ? 1 : 4>(
      tile.count, width / per_vector,
      [&](int row, int vector) {
        const std::int64_t at = Gathers ? rows.row(row) : row;
        return __ldcg(reinterpret_cast<const uint4*>(from + at * row_bytes) + vector);
      },
      [&](int row, int vector, const uint4& loaded) {
        float* x = tile.row(tile.first + row) + vector * per_vector;
        if constexpr (Bytes == 4) {
          zero = add_zero_times<float>(loaded, zero);
#pragma unroll
          for (int i = 0; i < 4; ++i) x[i] = limit_number(element<float>(loaded, i), rounds);
        } else if (scalar == Scalar::f16) {
          zero = add_zero_times<F16>(loaded, zero);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] = element<F16>(loaded, i);
        } else {
          zero = add_zero_times<BF16>(loaded, zero);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] = limit_number(element<BF16>(loaded, i), rounds);
        }
      });
  return zero == 0;
}

/// As load_vectors, for any strides, alignment and width.
[[nodiscard]] static __device__ bool load_elements(const SourceRows& rows, int head, int width,
                                                   const TokenTile& tile, bool rounds) {
  bool finite = true;
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    const std::int64_t at = rows.row(row);
    for (int c = lane; c < width; c += 32) {
      const float v = rows.in.get(at, head, c);
      finite = finite && is_finite(v);
      x[c] = limit_number(v, rounds);
    }
  }
  return finite;
}

/// Whether rows of a caller's tensor are whole vectors.
[[nodiscard]] inline bool can_load_vectors(const HeadRows& in, int width) noexcept {
  const int per_vector = 16 / scalar_bytes(in.scalar);
  return reinterpret_cast<std::uintptr_t>(in.data) % 16 == 0 && in.row_stride % per_vector == 0 &&
         in.head_stride % per_vector == 0 && width % per_vector == 0;
}

/// load_vectors of the tensor's elements.
template <bool Gathers>
[[nodiscard]] __device__ bool load_aligned(const SourceRows& rows, int head, int width,
                                           const TokenTile& tile, bool rounds) {
  return rows.in.scalar == Scalar::f32 ? load_vectors<4, Gathers>(rows, head, width, tile, rounds)
                                       : load_vectors<2, Gathers>(rows, head, width, tile, rounds);
}

/// Reads the tile's rows of a caller's tensor; `aligned`: can_load_vectors. By all threads, which
/// meet at the end; returns in all of them whether all are numbers.
[[nodiscard]] static __device__ bool load_rows(const SourceRows rows, bool aligned, int head,
                                               int width, const TokenTile tile, bool rounds) {
  bool finite;
  if (!aligned) {
    finite = load_elements(rows, head, width, tile, rounds);
  } else if (rows.numbers == nullptr) {
    finite = load_aligned<false>(rows, head, width, tile, rounds);
  } else {
    finite = load_aligned<true>(rows, head, width, tile, rounds);
  }
  return __syncthreads_and(finite ? 1 : 0) != 0;
}

/// Turns the tile's keys, of positions from `position` on, by a table; `rounds`: limit_number's. By
/// all threads, which meet at the end.
static __device__ void rotate_tile(const TokenTile tile, int width, const RopeSpec& rope,
                                   const RopeTable& table, int position, bool rounds) {
  constexpr int at_once = 4;  // rows of a warp, whose turns are loaded together
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  const int rotary = rope.rotary_dim;
  for (int first = static_cast<int>(threadIdx.x) / 32; first < tile.count;
       first += at_once * warps) {
    for (int i = lane; i < rotary / 2; i += 32) {
      float2 turns[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const std::int64_t row = min(first + k * warps, tile.count - 1);
        turns[k] =
            __ldcg(reinterpret_cast<const float2*>(table.turns + (position + row) * rotary) + i);
      }
      const int a = rope.first_channel(i), b = rope.second_channel(i);
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        if (first + k * warps >= tile.count) break;
        float* x = tile.row(tile.first + first + k * warps);
        turn_pair(rope, i, turns[k].x, turns[k].y, x);
        x[a] = limit_number(x[a], rounds);
        x[b] = limit_number(x[b], rounds);
      }
    }
  }
  for (int row = static_cast<int>(threadIdx.x) / 32; rounds && row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    for (int c = rotary + lane; c < width; c += 32) x[c] = limit_number(x[c], rounds);
  }
  __syncthreads();
}

/// `x [i * along]` as eight fp16 numbers; `Limited`: none is beyond what fp16 holds.
template <bool Limited>
[[nodiscard]] __device__ __forceinline__ uint4 pack_halves(const float* x, int along) {
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = x[2 * i * along], high = x[(2 * i + 1) * along];
    if constexpr (Limited) {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(high), "f"(low));
    } else {
      words[i] = static_cast<std::uint32_t>(to_f16_saturating(low).bits) |
                 static_cast<std::uint32_t>(to_f16_saturating(high).bits) << 16;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

/// `x [i * along]` as sixteen e4m3 numbers.
[[nodiscard]] __device__ __forceinline__ uint4 pack_e4m3(const float* x, int along) {
  std::uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    words[i / 4] |= static_cast<std::uint32_t>(to_e4m3(x[i * along])) << (i % 4 * 8);
  }
  return {words[0], words[1], words[2], words[3]};
}

/// Stores a whole tile, keys `[channel, token]` and values `[token, channel]`, as vectors of what
/// `pack(x, along)` makes of `PerVector` floats `x [i * along]`. By all threads, which do not meet
/// at the end.
template <int PerVector, class Pack>
__device__ void store_block(const CodecContext& context, const TokenTile& tile, std::byte* block,
                            Pack&& pack) {
  const bool is_key = context.side == Side::key;
  const int vectors = (is_key ? block_tokens : context.width) / PerVector;
  auto* to = reinterpret_cast<uint4*>(block);
  for_each_patch(
      is_key ? context.width : block_tokens, vectors, [](int, int) { return uint4{}; },
      [&](int row, int vector, const uint4&) {
        to[row * vectors + vector] = is_key ? pack(tile.row(vector * PerVector) + row, tile.stride)
                                            : pack(tile.row(row) + vector * PerVector, 1);
      });
}

/// Stores the first `count` tokens of the tile in the form of Identity, in room for `room` tokens
/// from place `place` on; whole blocks must have been rounded. By all threads, which do not meet at
/// the end.
static __device__ void store_tokens_f16(const CodecContext context, const TokenTile tile, int count,
                                        std::byte* block, int room, int place) {
  if (count == block_tokens && room == block_tokens && context.width % 8 == 0) {
    return store_block<8>(context, tile, block,
                          [](const float* x, int along) { return pack_halves<true>(x, along); });
  }
  const bool is_key = context.side == Side::key;
  auto* halves = reinterpret_cast<F16*>(block);
  const int inner = is_key ? count : context.width;
  for (int i = static_cast<int>(threadIdx.x); i < count * context.width;
       i += static_cast<int>(blockDim.x)) {
    const int t = is_key ? i % inner : i / inner, c = is_key ? i / inner : i % inner;
    halves[Identity::place(context, room, place + t, c)] =
        to_f16_saturating(tile.row(tile.first + t)[c]);
  }
}

/// Fills the tile with its tokens, multiples of eight from a multiple of eight on, of a block of 64
/// in the form of codec C. By all threads, which meet at the end.
template <class C>
__device__ void load_tail(const CodecContext& context, const std::byte* block,
                          const TokenTile& tile) {
  const bool is_key = context.side == Side::key;
  if (std::is_same_v<C, Identity> && context.width % 8 == 0) {
    const int vectors = (is_key ? tile.count : context.width) / 8;
    const int stored_vectors = (is_key ? block_tokens : context.width) / 8;
    const auto* from = reinterpret_cast<const uint4*>(block) +
                       (is_key ? tile.first / 8 : tile.first * stored_vectors);
    const int along = is_key ? tile.stride : 1;
    for_each_patch(
        is_key ? context.width : tile.count, vectors,
        [&](int row, int vector) { return from[row * stored_vectors + vector]; },
        [&](int row, int vector, const uint4& loaded) {
          float* x = is_key ? tile.row(tile.first + vector * 8) + row
                            : tile.row(tile.first + row) + vector * 8;
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i * along] = element<F16>(loaded, i);
        });
  } else {
    const int inner = is_key ? tile.count : context.width;
    for (int i = static_cast<int>(threadIdx.x); i < tile.count * context.width;
         i += static_cast<int>(blockDim.x)) {
      const int t = tile.first + (is_key ? i % inner : i / inner);
      const int c = is_key ? i / inner : i % inner;
      tile.row(t)[c] = C::decode(context, block, t, c);
    }
  }
  __syncthreads();
}

/// Limits the tile's numbers to a magnitude. By all threads, which meet before and at the end.
static __device__ void limit_tile(const TokenTile& tile, int width, float most) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  __syncthreads();
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    for (int c = lane; c < width; c += 32) x[c] = fminf(fmaxf(x[c], -most), most);
  }
  __syncthreads();
}

/// Rounds the tile's tokens to 16 bits. By all threads, which meet at the end.
static __device__ void round_tile(const TokenTile& tile, int width) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    for (int c = lane; c < width; c += 32) x[c] = limit_number(x[c], true);
  }
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
