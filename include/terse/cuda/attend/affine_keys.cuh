/// Logits against affine-coded keys of one block, on tensor cores, without unpacking a number.
///
/// Codes are the A operand: masked in place they are fp16 numbers, code * 2^(position - 24), exact
/// in the tensor core. The powers of two of the fields go into the query. Per-channel scales
/// multiply the query once per token group, minima add a product with it; per-token scales
/// multiply the logits.
///
/// A lane reads four neighbouring tokens of a channel chunk with one 16-byte load, so row g of
/// m-tile 2p + m is token 32p + 4g + 2m, and row g + 8 the one after it. Of 3-bit codes, whose
/// words hold those of tokens 16 apart, it reads two neighbours: row g is token 32p + 16m + 2g.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>
#include <type_traits>

#include "terse/config.hpp"
#include "terse/cuda/attend/code_fields.cuh"
#include "terse/cuda/attend/element_fields.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Token of row g + 8 * half of an m-tile, as the affine keys deliver logits.
struct AffineTokenOrder {
  __device__ static constexpr int token(int tile, int half, int g) {
    return 32 * (tile / 2) + 4 * g + 2 * (tile % 2) + half;
  }
  /// Row of the probability exchange in which (tile, half, g) lies, and its inverse.
  /// Lane groups lie in an 8-row tile of the exchange in the order g ^ swizzle.
  __device__ static constexpr int swizzle(int, int half) { return 4 * half; }
  __device__ static constexpr int row(int tile, int half, int g) {
    return (tile * 2 + half) * 8 + (g ^ swizzle(tile, half));
  }
  __device__ static constexpr int row_of_token(int token) {
    return row(token / 32 * 2 + token / 2 % 2, token % 2, token / 4 % 8);
  }
};

/// The same of keys whose words hold two tokens 16 apart.
struct PairedTokenOrder {
  __device__ static constexpr int token(int tile, int half, int g) {
    return 16 * tile + 2 * g + half;
  }
  __device__ static constexpr int swizzle(int, int half) { return half; }
  __device__ static constexpr int row(int tile, int half, int g) {
    return (tile * 2 + half) * 8 + (g ^ swizzle(tile, half));
  }
  __device__ static constexpr int row_of_token(int token) {
    return row(token / 16, token % 2, token / 2 % 8);
  }
};

template <class Codec, int Width, int Tiles>
struct AffineKeys {
  static constexpr AffineFormat format = Codec::affine_format;
  static constexpr bool per_channel = format.granularity == Granularity::per_channel;
  static constexpr int bits = format.bits;
  using Codes = typename FieldsOf<Codec>::type;
  /// Tiles of 16 tokens whose codes share words, at other positions.
  static constexpr int shared = tiles_per_bundle(bits);
  /// Chunks of eight channels in a run of a lane: two of 2 and 3 bits, else one, or half of one.
  static constexpr bool two_chunks = codes_per_lane(bits) == 16;
  static constexpr int run_chunks = two_chunks ? 2 : 1;
  static constexpr float code_unit = Codes::unit;
  static constexpr bool reads_next = ReadsNextChannels<Codes>;
  /// Factors lie in the place of scales, a byte for 16 channels of a token.
  static constexpr bool reads_factors = ReadsFactors<Codes>;
  /// Eight-channel chunks of a lane, in stored order.
  static constexpr int chunks = Width / 8;
  static constexpr int lane_chunks =
      two_chunks ? ceil_div(ceil_div(chunks, 2), 4) * 2 : ceil_div(chunks, 4);
  /// Whether all lanes have as many chunks.
  static constexpr bool even_chunks = chunks % (two_chunks ? 8 : 4) == 0;
  static constexpr int groups = affine_groups(format, Width);
  static constexpr int chunks_per_group = per_channel ? lane_chunks : lane_chunks / groups;
  static constexpr bool supported =
      Width % 16 == 0 &&
      (per_channel ? format.group == 32 || format.group == 64
                   : groups == 1 || (groups * format.group == Width &&
                                     format.group % (two_chunks ? 64 : 32) == 0));
  using Order = std::conditional_t<shared == 2, PairedTokenOrder, AffineTokenOrder>;

  struct Query {
    std::uint32_t scaled[Tiles][lane_chunks][shared][4];  // times the fields' powers of two
    std::uint32_t plain[Tiles][per_channel ? lane_chunks : 1][4];
    float sums[Tiles][per_channel ? 1 : groups][2];  // over the channels of a scale group
    std::uint32_t codes_at, params_at;  // where the lane's codes, scales and minima begin
  };

  /// Chunk `j` of a lane, clamped to the stored ones.
  __device__ __forceinline__ static int chunk(int j, int t) {
    const int c = two_chunks ? 2 * (t + 4 * (j / 2)) + j % 2 : t + 4 * j;
    return c < chunks ? c : chunks - 1;
  }
  __device__ __forceinline__ static bool has_chunk(int j, int t) {
    return (two_chunks ? 2 * (t + 4 * (j / 2)) + j % 2 : t + 4 * j) < chunks;
  }
  /// Fields from a chunk's first four channels to the other four: 0 where those have words of their
  /// own.
  static constexpr int field_step = bits == 8 ? 0 : Codes::field_step;
  /// Field of the chunk's first four channels in tile `m` of those that share words.
  __device__ static constexpr int first_field(int j, int m) {
    return field_of<bits>(m, two_chunks ? j % 2 * (3 - field_step) : 0);
  }
  /// Pair of channels of the `i`-th register of chunk j's operands.
  __device__ __forceinline__ static int channel_pair(int j, int i, int t) {
    if constexpr (field_step != 2) return chunk(j, t) * 4 + i;
    return chunk(j, t) / 2 * 8 + (first_field(j, 0) + i / 2 * field_step) * 2 + i % 2;
  }

  /// Bytes to the lane's tokens, in the first 16 or 32 of a block.
  __device__ __forceinline__ static int token_offset(int g) {
    constexpr int tile_bytes = runs_per_lane(bits, Side::key, Width) * 64;
    return shared == 2 ? g * 8 : g / 4 * tile_bytes + g % 4 * 16;
  }
  /// Bytes from a token's codes to those of chunk `j`, and from a group's parameters to its.
  __device__ __forceinline__ static int code_offset(int j, int t) {
    const int c = chunk(j, t), run = two_chunks ? c / 2 : c;
    return shared == 2 ? bundle_vector(bits, Side::key, Width, 0, run) * 64
                       : run * (bits == 8 ? 128 : 64);
  }
  __device__ __forceinline__ static int param_offset(int j, int t) {
    return reads_factors ? chunk(j, t) / 2 * 64 : chunk(j, t) * 16;
  }
  /// The same from chunk 0 on, which is the same for all lanes where all have as many chunks.
  __device__ __forceinline__ static std::uint32_t code_step(int j, int t) {
    const int lane_t = even_chunks ? 0 : t;
    return static_cast<std::uint32_t>(code_offset(j, lane_t) - code_offset(0, lane_t));
  }
  __device__ __forceinline__ static std::uint32_t param_step(int j, int t) {
    const int lane_t = even_chunks ? 0 : t;
    return static_cast<std::uint32_t>(param_offset(j, lane_t) - param_offset(0, lane_t));
  }

  /// Takes the operands of one n-tile from `q [8, stride]` fp16.
  __device__ static void load_query(Query& query, int tile, const __half* q, int stride) {
    const Lane lane = this_lane();
    query.codes_at =
        pinned(static_cast<std::uint32_t>(token_offset(lane.g) + code_offset(0, lane.t)));
    query.params_at =
        pinned(static_cast<std::uint32_t>(per_channel     ? param_offset(0, lane.t)
                                          : reads_factors ? param_offset(0, lane.t) + lane.g * 4
                                                          : lane.g * (shared == 2 ? 4 : 8)));
    const std::uint32_t* row = reinterpret_cast<const std::uint32_t*>(q + lane.g * stride);
    float partial[per_channel ? 1 : groups] = {};
#pragma unroll
    for (int j = 0; j < lane_chunks; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t x = has_chunk(j, lane.t) ? row[channel_pair(j, i, lane.t)] : 0u;
        const __half2 h = *reinterpret_cast<const __half2*>(&x);
        const float2 f = __half22float2(h);
        // A product by one frees the operands from the order in which they were loaded.
        if constexpr (per_channel) query.plain[tile][j][i] = multiply_half2(x, 0x3c003c00u);
#pragma unroll
        for (int m = 0; m < shared; ++m) {
          const int field = first_field(j, m) + i / 2 * field_step;
          const int position = Codes::position(field, i % 2);
          const float factor = 1.0f / static_cast<float>(1 << position);
          query.scaled[tile][j][m][i] = pack_half2(f.x * factor, f.y * factor);
          if constexpr (per_channel) {  // where the factor is one both are the same register
            if (position == 0) query.scaled[tile][j][m][i] = query.plain[tile][j][i];
          }
        }
        if constexpr (!per_channel) partial[j / chunks_per_group] += f.x + f.y;
      }
    }
    if constexpr (!per_channel) {
#pragma unroll
      for (int group = 0; group < groups; ++group) {
        float sum = partial[group];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        query.sums[tile][group][0] = __shfl_sync(~0u, sum, lane.t * 8);
        query.sums[tile][group][1] = __shfl_sync(~0u, sum, lane.t * 8 + 4);
      }
    }
  }

  /// s = logits in units of log2 minus `base`, with `norm` the factors that undo the queries'.
  __device__ __forceinline__ static void logits(std::uint32_t block, const Query& query,
                                                const float (&norm)[Tiles][2],
                                                const float (&base)[Tiles][2],
                                                float (&s)[Tiles][4][4]) {
    const Lane lane = this_lane();
    constexpr Record record = Codec::record(Side::key, Width);
    constexpr auto scales = static_cast<std::uint32_t>(record.sections[1].offset_bytes);
    constexpr auto minima =
        static_cast<std::uint32_t>(record.sections[format.has_min ? 2 : 1].offset_bytes);

    const std::uint32_t codes_at = block + query.codes_at, params = block + query.params_at;
    float products[Tiles][4][4];
    float offsets[Tiles][2][2];  // [tile, token group of 32, column]
    if constexpr (per_channel) {
      add_minima(params + minima, query, norm, base, offsets);
    }
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          products[n][m][i] = 0.0f;
          if constexpr (!per_channel) s[n][m][i] = -base[n][i & 1];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < lane_chunks; j += run_chunks) {
      if constexpr (!per_channel) {
        if (groups > 1 && j % chunks_per_group == 0) {
#pragma unroll
          for (int n = 0; n < Tiles; ++n) {
#pragma unroll
            for (int m = 0; m < 4; ++m) {
#pragma unroll
              for (int i = 0; i < 4; ++i) products[n][m][i] = 0.0f;
            }
          }
        }
      }
      std::uint32_t q[run_chunks][Tiles][shared][4];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
#pragma unroll
        for (int k = 0; k < run_chunks; ++k) {
          if constexpr (per_channel) {
            if (p == 0 || format.group == 32) {
              const uint4 scale = load_shared_16(
                  params + scales + static_cast<unsigned>(p * 32 / format.group * Width * 2) +
                  param_step(j + k, lane.t));
#pragma unroll
              for (int n = 0; n < Tiles; ++n) {
#pragma unroll
                for (int m = 0; m < shared; ++m) {
                  q[k][n][m][0] = multiply_half2(query.scaled[n][j + k][m][0], scale.x);
                  q[k][n][m][1] = multiply_half2(query.scaled[n][j + k][m][1], scale.y);
                  q[k][n][m][2] = multiply_half2(query.scaled[n][j + k][m][2], scale.z);
                  q[k][n][m][3] = multiply_half2(query.scaled[n][j + k][m][3], scale.w);
                }
              }
            }
          } else {
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
#pragma unroll
              for (int m = 0; m < shared; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) q[k][n][m][i] = query.scaled[n][j + k][m][i];
              }
            }
          }
        }
        const std::uint32_t at = codes_at + code_step(j, lane.t);
        if constexpr (!two_chunks) {
          multiply_chunk(at, params + scales + param_step(j, lane.t), p, j, q[0], products);
        } else if constexpr (reads_next) {
          multiply_following_run(at, p, j, q, products);
        } else {
          multiply_run(at, p, q, products);
        }
      }
      if constexpr (!per_channel) {
        if ((j + run_chunks) % chunks_per_group == 0) {
          add_scaled(params, j / chunks_per_group, query, norm, products, s);
        }
      }
    }
    if constexpr (per_channel) {
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            s[n][m][i] =
                __fmaf_rn(products[n][m][i], norm[n][i & 1] * code_unit, offsets[n][m / 2][i & 1]);
          }
        }
      }
    }
  }

 private:
  /// products += codes of chunk j, which lie at `at` and their factors, if any, at `factors_at`, of
  /// the token half p, times q.
  __device__ __forceinline__ static void multiply_chunk(std::uint32_t at, std::uint32_t factors_at,
                                                        int p, int j,
                                                        const std::uint32_t (&q)[Tiles][1][4],
                                                        float (&products)[Tiles][4][4]) {
    constexpr int tile_bytes = runs_per_lane(bits, Side::key, Width) * 64;
    const std::uint32_t tokens = at + static_cast<std::uint32_t>(2 * p * tile_bytes);
    // Words of four tokens that hold the chunk's first field and the next.
    const uint4 even = load_shared_16(tokens);
    uint4 odd = even;
    if constexpr (bits == 8) odd = load_shared_16(tokens + 64u);
    const int field = first_field(j, 0), next = field + field_step;
    const std::uint32_t e[4] = {even.x, even.y, even.z, even.w};
    const std::uint32_t o[4] = {odd.x, odd.y, odd.z, odd.w};
    uint2 factors{};
    if constexpr (reads_factors) {
      factors = element_factors(load_shared_4(factors_at + static_cast<unsigned>(32 * p)));
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      Codes first[2], second[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        first[i].set(0, e[2 * m + i]);
        second[i].set(0, o[2 * m + i]);
        if constexpr (reads_factors) {
          const std::uint32_t own =
              permuted(m == 0 ? factors.x : factors.y, 0, i == 0 ? 0x1010 : 0x3232);
          first[i].set_factors(own, own);
          second[i].set_factors(own, own);
        }
      }
      multiply_rows(first, second, field, next, 2 * p + m, 0, q, products);
    }
  }

  /// products += codes of a run's two chunks, which lie at `at`, of the token half p, times q.
  __device__ __forceinline__ static void multiply_run(
      std::uint32_t at, int p, const std::uint32_t (&q)[run_chunks][Tiles][shared][4],
      float (&products)[Tiles][4][4]) {
    const std::uint32_t tokens =
        at + static_cast<std::uint32_t>(bundle_vector(bits, Side::key, Width, 2 * p, 0) * 64);
    if constexpr (shared == 2) {
      Codes codes[2];  // of two tokens, and of those 16 on
#pragma unroll
      for (int v = 0; v < Codes::words; ++v) {
        const uint2 x = load_shared_8(tokens + static_cast<unsigned>(v) * 64u);
        codes[0].set(v, x.x);
        codes[1].set(v, x.y);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_chunks(codes, m, 2 * p + m, q, products);
    } else {
      const uint4 x = load_shared_16(tokens);
      const std::uint32_t w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        Codes codes[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) codes[i].set(0, w[2 * m + i]);
        multiply_chunks(codes, 0, 2 * p + m, q, products);
      }
    }
  }

  /// The same of codes that depend on those of the next channels; j is the run's first chunk.
  __device__ __forceinline__ static void multiply_following_run(
      std::uint32_t at, int p, int j, const std::uint32_t (&q)[run_chunks][Tiles][shared][4],
      float (&products)[Tiles][4][4]) {
    constexpr int runs = runs_per_lane(bits, Side::key, Width);
    const bool is_last = 4 * (j / 2) + this_lane().t >= runs - 1;
    const std::uint32_t tokens =
        at + static_cast<std::uint32_t>(bundle_vector(bits, Side::key, Width, 2 * p, 0) * 64);
    if constexpr (shared == 2) {
      std::uint32_t words[2][Codes::words];  // of two tokens, and of those 16 on
#pragma unroll
      for (int v = 0; v < Codes::words; ++v) {
        const uint2 x = load_shared_8(tokens + static_cast<unsigned>(v) * 64u);
        words[0][v] = ordered(x.x);
        words[1][v] = ordered(x.y);
      }
      uint2 next = load_shared_8(tokens + static_cast<unsigned>(Codes::words) * 64u);
      if (is_last) next = {0, 0};
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        Codes codes[2];
        codes[0].set_channels(Codes::word_of(words[0], m), next.x, m);
        codes[1].set_channels(Codes::word_of(words[1], m), next.y, m);
        multiply_chunks(codes, 0, 2 * p + m, q, products);
      }
    } else {
      const uint4 own = load_shared_16(tokens);
      uint4 next = load_shared_16(tokens + 64u);
      if (is_last) next = {0, 0, 0, 0};
      const std::uint32_t o[4] = {own.x, own.y, own.z, own.w};
      const std::uint32_t w[4] = {next.x, next.y, next.z, next.w};
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        Codes codes[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) codes[i].set_channels(o[2 * m + i], w[2 * m + i]);
        multiply_chunks(codes, 0, 2 * p + m, q, products);
      }
    }
  }

  /// products of m-tile `tile` += a run's two chunks of two tokens, of tile `m` of those that share
  /// words, times the queries.
  __device__ __forceinline__ static void multiply_chunks(
      const Codes (&codes)[2], int m, int tile,
      const std::uint32_t (&q)[run_chunks][Tiles][shared][4], float (&products)[Tiles][4][4]) {
#pragma unroll
    for (int k = 0; k < run_chunks; ++k) {
      const int field = first_field(k, m);
      multiply_rows(codes, codes, field, field + field_step, tile, m, q[k], products);
    }
  }

  /// products of m-tile `tile` += `field` of two tokens' words `first` and `next` of `second`,
  /// times the queries for tile `m` of those that share words.
  __device__ __forceinline__ static void multiply_rows(const Codes (&first)[2],
                                                       const Codes (&second)[2], int field,
                                                       int next, int tile, int m,
                                                       const std::uint32_t (&q)[Tiles][shared][4],
                                                       float (&products)[Tiles][4][4]) {
    std::uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[half][0] = first[0].pair(field, half);
      a[half][1] = first[1].pair(field, half);
      a[half][2] = second[0].pair(next, half);
      a[half][3] = second[1].pair(next, half);
    }
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply_add(products[n][tile], a[half][0], a[half][1], a[half][2], a[half][3],
                     q[n][m][half], q[n][m][2 + half]);
      }
    }
  }

  /// offsets = norm * (sum over channels of q * minimum) - base. `minima`: the lane's. Without
  /// minima the scales stand in for them, times -centre.
  __device__ __forceinline__ static void add_minima(std::uint32_t minima, const Query& query,
                                                    const float (&norm)[Tiles][2],
                                                    const float (&base)[Tiles][2],
                                                    float (&offsets)[Tiles][2][2]) {
    const Lane lane = this_lane();
    float even[Tiles][groups][4] = {}, odd[Tiles][groups][4] = {};
#pragma unroll
    for (int j = 0; j < lane_chunks; ++j) {
#pragma unroll
      for (int group = 0; group < groups; ++group) {
        // Pairs {0, 1, 2, 3} of eight channels as an A quad: row g meets pairs 0 and 2, row g + 8
        // pairs 1 and 3, so each of two products is right in one half of its rows.
        const uint4 z = load_shared_16(minima + static_cast<unsigned>(group * Width * 2) +
                                       param_step(j, lane.t));
#pragma unroll
        for (int n = 0; n < Tiles; ++n) {
          multiply_add(even[n][group], z.x, z.y, z.z, z.w, query.plain[n][j][0],
                       query.plain[n][j][2]);
          multiply_add(odd[n][group], z.x, z.y, z.z, z.w, query.plain[n][j][1],
                       query.plain[n][j][3]);
        }
      }
    }
    constexpr float factor = format.has_min ? 1.0f : -format.centre;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int group = half * 32 / format.group;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          offsets[n][half][i] =
              __fmaf_rn(even[n][group][i] + odd[n][group][2 + i], norm[n][i] * factor, -base[n][i]);
        }
      }
    }
  }

  /// Of the lane's numbers those of its four tokens of half `p`, in the order of m-tiles and rows.
  __device__ __forceinline__ static uint2 load_four(std::uint32_t numbers, int group, int p) {
    const std::uint32_t at = numbers + static_cast<std::uint32_t>((group * 64 + 32 * p) * 2);
    if constexpr (shared == 2) return {load_shared_4(at), load_shared_4(at + 32u)};
    return load_shared_8(at);
  }

  /// s += scale of each token * (products - centre * sum of q), and its minimum * sum of q.
  __device__ __forceinline__ static void add_scaled(std::uint32_t params, int group,
                                                    const Query& query,
                                                    const float (&norm)[Tiles][2],
                                                    const float (&products)[Tiles][4][4],
                                                    float (&s)[Tiles][4][4]) {
    constexpr Record record = Codec::record(Side::key, Width);
    constexpr auto scales = static_cast<std::uint32_t>(record.sections[1].offset_bytes);
    constexpr auto minima =
        static_cast<std::uint32_t>(record.sections[format.has_min ? 2 : 1].offset_bytes);
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      float scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
      if constexpr (!reads_factors) {
        const uint2 raw = load_four(params + scales, group, p);
        const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
        const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
        scale[0] = low.x;
        scale[1] = low.y;
        scale[2] = high.x;
        scale[3] = high.y;
      }
      float minimum[4] = {};
      if constexpr (format.has_min) {
        const uint2 rest = load_four(params + minima, group, p);
        const float2 l = __half22float2(*reinterpret_cast<const __half2*>(&rest.x));
        const float2 h = __half22float2(*reinterpret_cast<const __half2*>(&rest.y));
        minimum[0] = l.x;
        minimum[1] = l.y;
        minimum[2] = h.x;
        minimum[3] = h.y;
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int n = 0; n < Tiles; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float unit = scale[2 * m + half] * (norm[n][i] * code_unit);
              float& x = s[n][2 * p + m][2 * half + i];
              const float sum = query.sums[n][group][i];
              x = __fmaf_rn(products[n][2 * p + m][2 * half + i] - format.centre * sum / code_unit,
                            unit, x);
              if constexpr (format.has_min) {
                x = __fmaf_rn(minimum[2 * m + half] * norm[n][i], sum, x);
              }
            }
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
