#include "reference_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>

#include "half.hpp"
#include "kernels.hpp"

namespace terse::examples {
namespace {

std::size_t size(int count) { return static_cast<std::size_t>(count); }

std::vector<float> rounded_to_half(ThreadPool& pool, std::span<const float> values) {
  constexpr std::size_t stretch = 1 << 16;
  std::vector<float> rounded(values.size());
  pool.parallel_for(static_cast<int>((values.size() + stretch - 1) / stretch), [&](int index) {
    const std::size_t begin = size(index) * stretch;
    const std::size_t end = std::min(values.size(), begin + stretch);
    for (std::size_t i = begin; i < end; ++i) {
      rounded[i] = round_to_half(values[i]);
    }
  });
  return rounded;
}

}  // namespace

std::vector<float> reference_attention(ThreadPool& pool, const AttentionShape& shape,
                                       std::span<const float> q, std::span<const float> k,
                                       std::span<const float> v, int first_position) {
  const int d = shape.head_dim;
  const int kv_row = shape.kv_heads * d;
  const int q_row = shape.query_heads * d;
  if (d < 1 || shape.kv_heads < 1 || shape.query_heads < 1 ||
      shape.query_heads % shape.kv_heads != 0 || first_position < 0) {
    throw std::invalid_argument("reference_attention: impossible shape");
  }
  const int queries = static_cast<int>(q.size() / size(q_row));
  if (q.size() != size(queries) * size(q_row) || k.size() != v.size() ||
      k.size() != (size(first_position) + size(queries)) * size(kv_row)) {
    throw std::invalid_argument("reference_attention: sizes of q, k and v do not fit together");
  }
  const std::vector<float> keys = rounded_to_half(pool, k);
  const std::vector<float> values = rounded_to_half(pool, v);
  std::vector<float> output(q.size());

  constexpr int block_queries = 64;
  const int blocks = (queries + block_queries - 1) / block_queries;
  const int group = shape.query_heads / shape.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  pool.parallel_for(blocks * shape.query_heads, [&](int index) {
    // The last blocks see the most keys: they go first, so that no thread is left with one at the
    // end.
    const int block = blocks - 1 - index / shape.query_heads;
    const int head = index % shape.query_heads;
    const int first_query = block * block_queries;
    const int block_rows = std::min(block_queries, queries - first_query);
    const int visible = first_position + first_query + block_rows;
    const std::ptrdiff_t kv_offset = std::ptrdiff_t{head / group} * d;
    const std::ptrdiff_t q_offset = std::ptrdiff_t{first_query} * q_row + std::ptrdiff_t{head} * d;

    std::vector<float> weights(size(block_rows) * size(visible));
    kernels().multiply_transposed(q.data() + q_offset, q_row, block_rows, keys.data() + kv_offset,
                                  kv_row, d, visible, weights.data(), visible);
    for (int row = 0; row < block_rows; ++row) {
      float* row_weights = weights.data() + std::ptrdiff_t{row} * visible;
      const int seen = first_position + first_query + row + 1;
      kernels().softmax(row_weights, seen, scale);
      std::fill(row_weights + seen, row_weights + visible, 0.0f);
    }
    kernels().multiply(weights.data(), visible, block_rows, values.data() + kv_offset, kv_row,
                       visible, d, output.data() + q_offset, q_row);
  });
  return output;
}

}  // namespace terse::examples
