/// The host kernels in plain C++: for processors without a vector path, and for formats whose
/// groups the vector paths do not cover.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "terse/core/math.hpp"
#include "terse/cpu/kernel_table.hpp"
#include "terse/cpu/simd.hpp"
#include "terse/quant/fp8.hpp"

namespace terse::cpu {
inline namespace TERSE_FLAGS_NAMESPACE {
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

template <class T>
void scores(const float* queries, int rows, int width, const T* keys, int tokens, float* scores) {
  for (int row = 0; row < rows; ++row) {
    float sum[block_tokens] = {};
    const float* q = queries + static_cast<std::size_t>(row) * static_cast<std::size_t>(width);
    for (int c = 0; c < width; ++c) {
      const T* k = keys + static_cast<std::size_t>(c * tokens);
      for (int t = 0; t < tokens; ++t) sum[t] += q[c] * as_float(k[t]);
    }
    std::memcpy(scores + row * block_tokens, sum, static_cast<std::size_t>(tokens) * sizeof *sum);
  }
}

template <class T>
void values(const float* probabilities, int rows, int width, const T* values, int tokens,
            float* accumulators) {
  constexpr int tile = 64;
  for (int row = 0; row < rows; ++row) {
    const float* p = probabilities + row * block_tokens;
    float* out = accumulators + static_cast<std::size_t>(row) * static_cast<std::size_t>(width);
    for (int begin = 0; begin < width; begin += tile) {
      const int count = width - begin < tile ? width - begin : tile;
      float sum[tile] = {};
      for (int t = 0; t < tokens; ++t) {
        const T* v = values + static_cast<std::size_t>(t * width + begin);
        for (int c = 0; c < count; ++c) sum[c] += p[t] * as_float(v[c]);
      }
      for (int c = 0; c < count; ++c) out[begin + c] += sum[c];
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

/// A code of at most 8 bits times an fp16 scale is exact, so a sum rounds once, fused or not.
inline float decode_one(const AffineFormat& f, const AffineParts& parts, unsigned code,
                        int param) noexcept {
  const float x =
      (static_cast<float>(code) - f.centre) * terse::detail::load_half(parts.scales, param);
  return f.has_min ? x + terse::detail::load_half(parts.minima, param) : x;
}

/// Decodes channels [begin, end) of all 64 tokens, `[channel, token]` or `[token, channel]`.
template <int Bits>
void decode_channels(const AffineFormat& f, Side side, int width, const AffineParts& parts,
                     int begin, int end, float* out) {
  for (int c = begin; c < end; ++c) {
    for (int t = 0; t < block_tokens; ++t) {
      const unsigned code = load_code<Bits>(parts.codes, code_place<Bits>(side, width, t, c));
      out[side == Side::key ? (c - begin) * block_tokens + t : t * (end - begin) + c - begin] =
          decode_one(f, parts, code, affine_param_index(f, width, t, c));
    }
  }
}

inline void decode_channels(const AffineFormat& f, Side side, int width, const AffineParts& parts,
                            int begin, int end, float* out) {
  switch (f.bits) {
    case 2:
      return decode_channels<2>(f, side, width, parts, begin, end, out);
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

inline float softmax_block(float* scores, std::uint64_t mask, SoftmaxState* state) {
  float maximum = state->max;
  for (int t = 0; t < block_tokens; ++t) {
    if ((mask >> t & 1u) != 0 && scores[t] > maximum) maximum = scores[t];
  }
  const bool all_excluded = maximum == -__builtin_inff();
  float sum = 0.0f;
  for (int t = 0; t < block_tokens; ++t) {
    const bool counts = !all_excluded && (mask >> t & 1u) != 0;
    scores[t] = counts ? exp_nonpositive(scores[t] - maximum) : 0.0f;
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

inline void scale(float* x, int count, float factor) {
  for (int i = 0; i < count; ++i) x[i] *= factor;
}

inline constexpr KernelTable table{
    .name = "portable",
    .scores_f32 = scores_f32,
    .scores_f16 = scores_f16,
    .scores_e4m3 = scores_e4m3,
    .values_f32 = values_f32,
    .values_f16 = values_f16,
    .values_e4m3 = values_e4m3,
    .prepared_bytes = prepared_bytes,
    .prepare_queries = prepare_queries,
    .scores_affine = scores_affine,
    .values_affine = values_affine,
    .decode_affine = decode_affine,
    .softmax_block = softmax_block,
    .softmax_rows = softmax_rows,
    .scale = scale,
};

}  // namespace portable
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse::cpu
