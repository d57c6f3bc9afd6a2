/// The inner loops of host attention, one table per instruction set.
///
/// A kernel sees one block of one stream and all query rows that read it, so every code is decoded
/// once for up to four of them (AVX-512, AVX2) or for all (portable). Scores of masked tokens are
/// computed and ignored. Row strides: queries `[row, width]`, scores and probabilities `[row, 64]`,
/// accumulators `[row, width]`. Keys are `[channel, token]`, values `[token, channel]`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/scalar.hpp"
#include "terse/policy/record.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cpu {

/// Running maximum and sum of one query row's softmax.
struct SoftmaxState {
  float max = -__builtin_inff();
  float sum = 0.0f;
};

struct KernelTable {
  const char* name;

  /// scores[row][t] = sum_c queries[row][c] * keys[c][t] for t < tokens (a multiple of 16, <= 64);
  /// keys[c][t] lies at keys[c * tokens + t].
  void (*scores_f32)(const float* queries, int rows, int width, const float* keys, int tokens,
                     float* scores);
  void (*scores_f16)(const float* queries, int rows, int width, const F16* keys, int tokens,
                     float* scores, const std::byte* next);
  void (*scores_e4m3)(const float* queries, int rows, int width, const std::uint8_t* keys,
                      int tokens, float* scores, const std::byte* next);

  /// accumulators[row][c] += sum_{t < tokens} probabilities[row][t] * values[t][c].
  void (*values_f32)(const float* probabilities, int rows, int width, const float* values,
                     int tokens, float* accumulators);
  void (*values_f16)(const float* probabilities, int rows, int width, const F16* values, int tokens,
                     float* accumulators, const std::byte* next);
  void (*values_e4m3)(const float* probabilities, int rows, int width, const std::uint8_t* values,
                      int tokens, float* accumulators, const std::byte* next);

  /// Whether this table's own code reads records of `format` (its scale groups fall in with the
  /// vectors); if not, the portable one does.
  bool (*covers)(const AffineFormat& format, Side side, int width);
  /// Bytes that `prepare_queries` writes (a multiple of 64).
  std::size_t (*prepared_bytes)(const AffineFormat& format, int rows, int width);
  /// Whatever `scores_affine` needs of the queries beside themselves, once per attend.
  void (*prepare_queries)(const AffineFormat& format, const float* queries, int rows, int width,
                          std::byte* prepared);
  /// Scores of 64 tokens straight from a key record of `format`.
  void (*scores_affine)(const AffineFormat& format, int width, const std::byte* record,
                        const float* queries, const std::byte* prepared, int rows, float* scores,
                        const std::byte* next);
  /// Weighted sum of 64 tokens straight from a value record of `format` (per_token only).
  void (*values_affine)(const AffineFormat& format, int width, const std::byte* record,
                        const float* probabilities, int rows, float* accumulators,
                        const std::byte* next);
  /// The 64 tokens of a record as fp32, `[channel, token]` (keys) or `[token, channel]` (values).
  void (*decode_affine)(const AffineFormat& format, Side side, int width, const std::byte* record,
                        float* out);

  /// Codes of 2, 3 or 4 bits, in the order of code_place, as levels[code] * scales[token]: channels
  /// [begin, end) of the 64 tokens, as decode_affine leaves them. `begin` is a multiple of 8.
  void (*decode_levels)(int bits, Side side, int width, const std::byte* codes,
                        const float (&levels)[16], const float (&scales)[block_tokens], int begin,
                        int end, float* out);

  /// Codes of 1 to 4 bits along a trellis, in the order of code_place, as level * scales[token]:
  /// `levels` by Trellis::index_of. All 64 tokens, as decode_affine leaves them.
  void (*decode_trellis)(int bits, Side side, int width, const std::byte* codes,
                         const float (&levels)[32], const float (&scales)[block_tokens],
                         float* out);

  /// Turns the logits of the tokens in `mask` into exp(logit - new maximum), all others of the 64
  /// into 0, and updates `state`. Returns the factor by which earlier sums must be multiplied
  /// (1 if the maximum did not change). `mask` must not be 0.
  float (*softmax_block)(float* scores, std::uint64_t mask, SoftmaxState* state);

  /// softmax_block of `rows` rows that share a mask; also multiplies each row of `accumulators
  /// [row, width]` by its factor.
  void (*softmax_rows)(float* scores, int rows, std::uint64_t mask, SoftmaxState* states, int width,
                       float* accumulators);

  /// terse::hadamard, the same bits.
  void (*hadamard)(float* x, int width, int size);

  /// x = cap * tanh(x / cap) of `count` numbers, a multiple of 16; error below 1.5e-7 cap.
  void (*soft_cap)(float* x, int count, float cap);
};

}  // namespace cpu
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
