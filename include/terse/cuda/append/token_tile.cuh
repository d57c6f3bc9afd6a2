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
  // Exact for fewer than 2^16 / across patches; a tile has at most 8 * 64 of them.
  const int inverse = 65536 / across + 1;
  for (int p = static_cast<int>(threadIdx.x) / 32; p < patches; p += warps * Batch) {
    uint4 loaded[Batch] = {};
    int row[Batch], vector[Batch];
#pragma unroll
    for (int k = 0; k < Batch; ++k) {
      const int patch = p + k * warps;
      const int down = patch * inverse >> 16;
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

/// Reads rows of a caller's tensor into the tile, limited to what 16 bits hold. `Gathers`: rows
/// have numbers; one load is in flight then, so that the kernel has registers left for the others.
/// By all threads; returns whether this thread's numbers are numbers.
template <class T, bool Gathers>
[[nodiscard]] __device__ bool load_vectors(const SourceRows& rows, int head, int width,
                                           const TokenTile& tile) {
  constexpr int per_vector = 16 / static_cast<int>(sizeof(T));
  const std::int64_t row_stride = rows.in.row_stride;
  const T* from = static_cast<const T*>(rows.in.data) + (Gathers ? 0 : rows.first * row_stride) +
                  head * rows.in.head_stride;
  float nothing = 0.0f;  // a NaN as soon as a number is none
  for_each_patch<Gathers ? 1 : 4>(
      tile.count, width / per_vector,
      [&](int row, int vector) {
        const std::int64_t at = Gathers ? rows.row(row) : row;
        return __ldg(reinterpret_cast<const uint4*>(from + at * row_stride) + vector);
      },
      [&](int row, int vector, const uint4& loaded) {
        float* x = tile.row(tile.first + row) + vector * per_vector;
#pragma unroll
        for (int i = 0; i < per_vector; ++i) {
          const float v = element<T>(loaded, i);
          nothing = __fmaf_rn(v, 0.0f, nothing);
          x[i] = std::is_same_v<T, F16> ? v : fminf(fmaxf(v, -f16_max), f16_max);
        }
      });
  return nothing == 0.0f;
}

/// As load_vectors, for any strides, alignment and width.
[[nodiscard]] static __device__ bool load_elements(const SourceRows& rows, int head, int width,
                                                   const TokenTile& tile) {
  bool finite = true;
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    const std::int64_t at = rows.row(row);
    for (int c = lane; c < width; c += 32) {
      const float v = rows.in.get(at, head, c);
      finite = finite && is_finite(v);
      x[c] = clamp(v, -f16_max, f16_max);
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
                                           const TokenTile& tile) {
  if (rows.in.scalar == Scalar::f32) return load_vectors<float, Gathers>(rows, head, width, tile);
  if (rows.in.scalar == Scalar::f16) return load_vectors<F16, Gathers>(rows, head, width, tile);
  return load_vectors<BF16, Gathers>(rows, head, width, tile);
}

/// Reads the tile's rows of a caller's tensor; `aligned`: can_load_vectors. By all threads, which
/// meet at the end; returns in all of them whether all are numbers.
[[nodiscard]] static __device__ bool load_rows(const SourceRows& rows, bool aligned, int head,
                                               int width, const TokenTile& tile) {
  bool finite;
  if (!aligned) {
    finite = load_elements(rows, head, width, tile);
  } else if (rows.numbers == nullptr) {
    finite = load_aligned<false>(rows, head, width, tile);
  } else {
    finite = load_aligned<true>(rows, head, width, tile);
  }
  return __syncthreads_and(finite ? 1 : 0) != 0;
}

/// Turns the tile's keys, of positions from `position` on, by a table. By all threads, which meet
/// at the end.
static __device__ void rotate_tile(const TokenTile& tile, int width, const RopeSpec& rope,
                                   const RopeTable& table, int position) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    const auto* turns = reinterpret_cast<const float2*>(table.turns + std::int64_t{position + row} *
                                                                          rope.rotary_dim);
    for (int i = lane; i < rope.rotary_dim / 2; i += 32) {
      const float2 turn = __ldg(turns + i);
      turn_pair(rope, i, turn.x, turn.y, x);
    }
    __syncwarp();
    for (int c = lane; c < width; c += 32) x[c] = clamp(x[c], -f16_max, f16_max);
  }
  __syncthreads();
}

/// `x [i * along]` as eight fp16 numbers.
[[nodiscard]] __device__ __forceinline__ uint4 pack_halves(const float* x, int along) {
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = static_cast<std::uint32_t>(to_f16_saturating(x[2 * i * along]).bits) |
               static_cast<std::uint32_t>(to_f16_saturating(x[(2 * i + 1) * along]).bits) << 16;
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
/// from place `place` on. By all threads, which do not meet at the end.
static __device__ void store_exact(const CodecContext& context, const TokenTile& tile, int count,
                                   std::byte* exact, int room, int place) {
  if (count == block_tokens && room == block_tokens && context.width % 8 == 0) {
    return store_block<8>(context, tile, exact,
                          [](const float* x, int along) { return pack_halves(x, along); });
  }
  const bool is_key = context.side == Side::key;
  auto* halves = reinterpret_cast<F16*>(exact);
  const int inner = is_key ? count : context.width;
  for (int i = static_cast<int>(threadIdx.x); i < count * context.width;
       i += static_cast<int>(blockDim.x)) {
    const int t = is_key ? i % inner : i / inner, c = is_key ? i / inner : i % inner;
    halves[Identity::place(context, room, place + t, c)] =
        to_f16_saturating(tile.row(tile.first + t)[c]);
  }
}

/// Fills the tile with the 64 tokens of a block in the form of Identity. By all threads, which meet
/// at the end.
static __device__ void load_exact(const CodecContext& context, const std::byte* exact,
                                  const TokenTile& tile) {
  const bool is_key = context.side == Side::key;
  if (context.width % 8 == 0) {
    const int vectors = (is_key ? block_tokens : context.width) / 8;
    const auto* from = reinterpret_cast<const uint4*>(exact);
    const int along = is_key ? tile.stride : 1;
    for_each_patch(
        is_key ? context.width : block_tokens, vectors,
        [&](int row, int vector) { return from[row * vectors + vector]; },
        [&](int row, int vector, const uint4& loaded) {
          float* x = is_key ? tile.row(vector * 8) + row : tile.row(row) + vector * 8;
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i * along] = element<F16>(loaded, i);
        });
  } else {
    const auto* halves = reinterpret_cast<const F16*>(exact);
    const int inner = is_key ? block_tokens : context.width;
    for (int i = static_cast<int>(threadIdx.x); i < block_tokens * context.width;
         i += static_cast<int>(blockDim.x)) {
      tile.row(is_key ? i % inner : i / inner)[is_key ? i / inner : i % inner] =
          to_float(halves[i]);
    }
  }
  __syncthreads();
}

/// Rounds the tile's tokens to what exact copies hold. By all threads, which meet at the end.
static __device__ void round_tile(const TokenTile& tile, int width) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.count; row += warps) {
    float* x = tile.row(tile.first + row);
    for (int c = lane; c < width; c += 32) x[c] = to_float(to_f16_saturating(x[c]));
  }
  __syncthreads();
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
