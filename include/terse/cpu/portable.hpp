/// The host kernels in plain C++: for processors without a vector path, and for formats whose
/// groups the vector paths do not cover.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/simd.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/hadamard.hpp"
#include "terse/quant/trellis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {
namespace portable {

inline float as_float(float x) noexcept { return x; }
inline float as_float(F16 x) noexcept { return to_float(x); }
inline float as_float(std::uint8_t x) noexcept { return from_e4m3(x); }

/// exp(x) for x <= 0, relative error below 2e-7; 0 for -infinity, NaN for NaN. Products that need
/// every bit are exact here, so it does not matter whether the compiler fuses them.
inline float exp_nonpositive(float x) noexcept {
  if (x < exp_floor) return 0.0f;
  if (!(x <= 0.0f)) return x;  // NaN
  const int n = round_half_even(x * log2_e);
  const auto steps = static_cast<float>(n);
  const float r = (x - steps * 0.693359375f) + steps * 2.12194440e-4f;
  const float g = exp_g[0] + r * (exp_g[1] + r * (exp_g[2] + r * (exp_g[3] + r * exp_g[4])));
  const float y = (r * r * g + r) + 1.0f;
  // Two factors, because 2^n alone leaves the normal numbers before the product does.
  const int half = n / 2;
  const auto power = [](int e) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(e + 127) << 23);
  };
  return y * power(half) * power(n - half);
}

/// Rows whose sums of one pass lie on the stack.
inline constexpr int row_tile = 8;

template <class T>
void scores(const float* queries, int rows, int width, const T* keys, int tokens, float* scores) {
  for (int first = 0; first < rows; first += row_tile) {
    const int count = rows - first < row_tile ? rows - first : row_tile;
    const float* q = queries + static_cast<std::size_t>(first) * static_cast<std::size_t>(width);
    float sum[row_tile][block_tokens] = {};
    for (int c = 0; c < width; ++c) {
      float k[block_tokens];
      for (int t = 0; t < tokens; ++t) k[t] = as_float(keys[c * tokens + t]);
      for (int r = 0; r < count; ++r) {
        const float x = q[r * width + c];
        for (int t = 0; t < tokens; ++t) sum[r][t] += x * k[t];
      }
    }
    for (int r = 0; r < count; ++r) {
      std::memcpy(scores + (first + r) * block_tokens, sum[r],
                  static_cast<std::size_t>(tokens) * sizeof(float));
    }
  }
}

template <class T>
void values(const float* probabilities, int rows, int width, const T* values, int tokens,
            float* accumulators) {
  constexpr int tile = 64;
  for (int first = 0; first < rows; first += row_tile) {
    const int rows_here = rows - first < row_tile ? rows - first : row_tile;
    const float* p = probabilities + first * block_tokens;
    for (int begin = 0; begin < width; begin += tile) {
      const int count = width - begin < tile ? width - begin : tile;
      float sum[row_tile][tile] = {};
      for (int t = 0; t < tokens; ++t) {
        float v[tile];
        for (int c = 0; c < count; ++c) v[c] = as_float(values[t * width + begin + c]);
        for (int r = 0; r < rows_here; ++r) {
          const float x = p[r * block_tokens + t];
          for (int c = 0; c < count; ++c) sum[r][c] += x * v[c];
        }
      }
      for (int r = 0; r < rows_here; ++r) {
        float* out = accumulators + (first + r) * width + begin;
        for (int c = 0; c < count; ++c) out[c] += sum[r][c];
      }
    }
  }
}

inline void scores_f32(const float* queries, int rows, int width, const float* keys, int tokens,
                       float* out) {
  scores(queries, rows, width, keys, tokens, out);
}
inline void scores_f16(const float* queries, int rows, int width, const F16* keys, int tokens,
                       float* out, const std::byte*) {
  scores(queries, rows, width, keys, tokens, out);
}
inline void scores_e4m3(const float* queries, int rows, int width, const std::uint8_t* keys,
                        int tokens, float* out, const std::byte*) {
  scores(queries, rows, width, keys, tokens, out);
}
inline void values_f32(const float* probabilities, int rows, int width, const float* v, int tokens,
                       float* accumulators) {
  values(probabilities, rows, width, v, tokens, accumulators);
}
inline void values_f16(const float* probabilities, int rows, int width, const F16* v, int tokens,
                       float* accumulators, const std::byte*) {
  values(probabilities, rows, width, v, tokens, accumulators);
}
inline void values_e4m3(const float* probabilities, int rows, int width, const std::uint8_t* v,
                        int tokens, float* accumulators, const std::byte*) {
  values(probabilities, rows, width, v, tokens, accumulators);
}

/// The parameters of one channel's 64 tokens.
struct ChannelParams {
  float scale[block_tokens];
  float minimum[block_tokens] = {};
  int last = -1;  ///< index of the first parameter, to load a group's only once

  void load(const AffineFormat& f, int width, const AffineParts& parts, int channel) noexcept {
    const int first = affine_param_index(f, width, 0, channel);
    if (first == last) return;
    last = first;
    const int run = f.granularity == Granularity::per_channel ? f.group : 1;
    for (int t = 0; t < block_tokens; t += run) {
      const int at = affine_param_index(f, width, t, channel);
      const float s = terse::detail::load_half(parts.scales, at);
      const float m = f.has_min ? terse::detail::load_half(parts.minima, at) : 0.0f;
      for (int i = t; i < t + run; ++i) {
        scale[i] = s;
        minimum[i] = m;
      }
    }
  }
};

/// Decodes channels [begin, end) of all 64 tokens, `[channel, token]` or `[token, channel]`. A code
/// of at most 8 bits times an fp16 scale is exact, so the sum rounds once, fused or not.
template <int Bits>
void decode_channels(const AffineFormat& f, Side side, int width, const AffineParts& parts,
                     int begin, int end, float* out) {
  ChannelParams params;
  for (int c = begin; c < end; ++c) {
    params.load(f, width, parts, c);
    float x[block_tokens];
    for (int t = 0; t < block_tokens; ++t) {
      const unsigned code = load_code<Bits>(parts.codes, code_place<Bits>(side, width, t, c));
      x[t] = static_cast<float>(code) - f.centre;
    }
    for (int t = 0; t < block_tokens; ++t) x[t] *= params.scale[t];
    if (f.has_min) {
      for (int t = 0; t < block_tokens; ++t) x[t] += params.minimum[t];
    }
    const int step = side == Side::key ? 1 : end - begin;
    float* to = out + (side == Side::key ? (c - begin) * block_tokens : c - begin);
    for (int t = 0; t < block_tokens; ++t) to[t * step] = x[t];
  }
}

inline void decode_channels(const AffineFormat& f, Side side, int width, const AffineParts& parts,
                            int begin, int end, float* out) {
  switch (f.bits) {
    case 1:
      return decode_channels<1>(f, side, width, parts, begin, end, out);
    case 2:
      return decode_channels<2>(f, side, width, parts, begin, end, out);
    case 3:
      return decode_channels<3>(f, side, width, parts, begin, end, out);
    case 4:
      return decode_channels<4>(f, side, width, parts, begin, end, out);
    default:
      return decode_channels<8>(f, side, width, parts, begin, end, out);
  }
}

inline std::size_t prepared_bytes(const AffineFormat&, int, int) { return 0; }
inline void prepare_queries(const AffineFormat&, const float*, int, int, std::byte*) {}

inline void scores_affine(const AffineFormat& f, int width, const std::byte* record,
                          const float* queries, const std::byte*, int rows, float* out,
                          const std::byte*) {
  constexpr int chunk = 16;
  const AffineParts parts(f, Side::key, width, record);
  float keys[chunk * block_tokens];
  std::memset(out, 0, static_cast<std::size_t>(rows * block_tokens) * sizeof *out);
  for (int begin = 0; begin < width; begin += chunk) {
    const int end = width - begin < chunk ? width : begin + chunk;
    decode_channels(f, Side::key, width, parts, begin, end, keys);
    for (int row = 0; row < rows; ++row) {
      const float* q = queries + static_cast<std::size_t>(row) * static_cast<std::size_t>(width);
      float* score = out + row * block_tokens;
      for (int c = begin; c < end; ++c) {
        const float* k = keys + (c - begin) * block_tokens;
        for (int t = 0; t < block_tokens; ++t) score[t] += q[c] * k[t];
      }
    }
  }
}

inline void values_affine(const AffineFormat& f, int width, const std::byte* record,
                          const float* probabilities, int rows, float* accumulators,
                          const std::byte*) {
  constexpr int chunk = 16;
  const AffineParts parts(f, Side::value, width, record);
  float decoded[block_tokens * chunk];
  for (int begin = 0; begin < width; begin += chunk) {
    const int count = width - begin < chunk ? width - begin : chunk;
    decode_channels(f, Side::value, width, parts, begin, begin + count, decoded);
    for (int row = 0; row < rows; ++row) {
      const float* p = probabilities + row * block_tokens;
      float sum[chunk] = {};
      for (int t = 0; t < block_tokens; ++t) {
        for (int c = 0; c < count; ++c) sum[c] += p[t] * decoded[t * count + c];
      }
      float* total =
          accumulators + static_cast<std::size_t>(row) * static_cast<std::size_t>(width) + begin;
      for (int c = 0; c < count; ++c) total[c] += sum[c];
    }
  }
}

inline void decode_affine(const AffineFormat& f, Side side, int width, const std::byte* record,
                          float* out) {
  decode_channels(f, side, width, AffineParts(f, side, width, record), 0, width, out);
}

template <int Bits>
void decode_levels(Side side, int width, const std::byte* codes, const float (&levels)[16],
                   const float (&scales)[block_tokens], int begin, int end, float* out) {
  for (int c = begin; c < end; ++c) {
    for (int t = 0; t < block_tokens; ++t) {
      const unsigned code = load_code<Bits>(codes, code_place<Bits>(side, width, t, c));
      out[side == Side::key ? c * block_tokens + t : t * width + c] = levels[code] * scales[t];
    }
  }
}

inline void decode_levels(int bits, Side side, int width, const std::byte* codes,
                          const float (&levels)[16], const float (&scales)[block_tokens], int begin,
                          int end, float* out) {
  switch (bits) {
    case 2:
      return decode_levels<2>(side, width, codes, levels, scales, begin, end, out);
    case 3:
      return decode_levels<3>(side, width, codes, levels, scales, begin, end, out);
    default:
      return decode_levels<4>(side, width, codes, levels, scales, begin, end, out);
  }
}

template <int Bits>
void decode_trellis(Side side, int width, const std::byte* codes, const float (&levels)[32],
                    const float (&scales)[block_tokens], float* out) {
  for (int t = 0; t < block_tokens; ++t) {
    unsigned next = 0, second = 0;
    for (int c = width - 1; c >= 0; --c) {
      const unsigned code = load_code<Bits>(codes, code_place<Bits>(side, width, t, c));
      out[side == Side::key ? c * block_tokens + t : t * width + c] =
          levels[Trellis<Bits>::index_of(code, next, second)] * scales[t];
      second = next;
      next = code;
    }
  }
}

inline void decode_trellis(int bits, Side side, int width, const std::byte* codes,
                           const float (&levels)[32], const float (&scales)[block_tokens],
                           float* out) {
  switch (bits) {
    case 1:
      return decode_trellis<1>(side, width, codes, levels, scales, out);
    case 2:
      return decode_trellis<2>(side, width, codes, levels, scales, out);
    case 3:
      return decode_trellis<3>(side, width, codes, levels, scales, out);
    default:
      return decode_trellis<4>(side, width, codes, levels, scales, out);
  }
}

inline float softmax_block(float* scores, std::uint64_t mask, SoftmaxState* state) {
  float maximum = state->max;
  for (int t = 0; t < block_tokens; ++t) {
    if ((mask >> t & 1u) != 0 && scores[t] > maximum) maximum = scores[t];
  }
  // Where every logit so far excludes its token, 0 takes the place of the maximum: exp(-inf) = 0.
  const float reference = maximum == -__builtin_inff() ? 0.0f : maximum;
  float sum = 0.0f;
  for (int t = 0; t < block_tokens; ++t) {
    scores[t] = (mask >> t & 1u) != 0 ? exp_nonpositive(scores[t] - reference) : 0.0f;
    sum += scores[t];
  }
  const float factor = maximum == state->max ? 1.0f : exp_nonpositive(state->max - maximum);
  state->max = maximum;
  state->sum = state->sum * factor + sum;
  return factor;
}

inline void softmax_rows(float* scores, int rows, std::uint64_t mask, SoftmaxState* states,
                         int width, float* accumulators) {
  for (int row = 0; row < rows; ++row) {
    const float factor = softmax_block(scores + row * block_tokens, mask, states + row);
    if (factor == 1.0f) continue;
    float* out = accumulators + static_cast<std::size_t>(row) * static_cast<std::size_t>(width);
    for (int c = 0; c < width; ++c) out[c] *= factor;
  }
}

inline void soft_cap(float* x, int count, float cap) {
  for (int i = 0; i < count; ++i) x[i] = cap * std::tanh(x[i] / cap);
}

inline bool covers(const AffineFormat&, Side, int) { return true; }

inline constexpr KernelTable table{
    .name = "portable",
    .scores_f32 = scores_f32,
    .scores_f16 = scores_f16,
    .scores_e4m3 = scores_e4m3,
    .values_f32 = values_f32,
    .values_f16 = values_f16,
    .values_e4m3 = values_e4m3,
    .covers = covers,
    .prepared_bytes = prepared_bytes,
    .prepare_queries = prepare_queries,
    .scores_affine = scores_affine,
    .values_affine = values_affine,
    .decode_affine = decode_affine,
    .decode_levels = decode_levels,
    .decode_trellis = decode_trellis,
    .softmax_block = softmax_block,
    .softmax_rows = softmax_rows,
    .hadamard = terse::hadamard,
    .soft_cap = soft_cap,
};

}  // namespace portable
}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
