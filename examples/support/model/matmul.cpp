#include "matmul.hpp"

#include <algorithm>
#include <cstddef>

#include "kernels.hpp"

namespace terse::examples {
namespace {

const Kernels& best_kernels() {
#if defined(TERSE_EXAMPLE_X86_KERNELS)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma")) {
    return avx512_kernels();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2_kernels();
  }
#endif
  return baseline_kernels();
}

int tiles(int extent, int tile) { return (extent + tile - 1) / tile; }

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = best_kernels();
  return chosen;
}

void matmul(ThreadPool& pool, const float* x, int rows, const float* w, int in, int out, float* y) {
  // A tile of w stays in the second-level cache. Few rows are bound by reading w: narrow tiles then
  // keep every thread busy to the end.
  constexpr int tile_rows = 256;
  const int tile_columns = rows < 16 ? 64 : 512;
  const int row_tiles = tiles(rows, tile_rows);
  const int column_tiles = tiles(out, tile_columns);
  pool.parallel_for(row_tiles * column_tiles, [&](int tile) {
    const int first_row = tile % row_tiles * tile_rows;
    const int first_column = tile / row_tiles * tile_columns;
    kernels().multiply_transposed(
        x + std::ptrdiff_t{first_row} * in, in, std::min(tile_rows, rows - first_row),
        w + std::ptrdiff_t{first_column} * in, in, in, std::min(tile_columns, out - first_column),
        y + std::ptrdiff_t{first_row} * out + first_column, out);
  });
}

double log_sum_exp(const float* values, int count) { return kernels().log_sum_exp(values, count); }

void silu_multiply(float* gate, const float* up, int count) {
  kernels().silu_multiply(gate, up, count);
}

}  // namespace terse::examples
