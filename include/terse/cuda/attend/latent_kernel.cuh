/// The kernel that attends to latents: thread blocks share the work by work_division.cuh, values
/// are summed as latents and projected once per output row.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/cuda/append/tile_basis.cuh"
#include "terse/cuda/attend/exact_items.cuh"
#include "terse/cuda/attend/latent_blocks.cuh"
#include "terse/cuda/attend/latent_memory.cuh"
#include "terse/cuda/attend/segment.cuh"
#include "terse/cuda/attend/tile_product.cuh"
#include "terse/cuda/attend/work_division.cuh"
#include "terse/cuda/warp/operands.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

template <class Ref>
struct LatentKernel : LatentBlocks<Ref> {
  using Base = LatentBlocks<Ref>;
  using Base::Base;
  using Base::call;
  using Base::head_in_unit;
  using Base::keys;
  using Base::lane;
  using Base::load_angles;
  using Base::load_queries;
  using Base::log2e;
  using Base::memory;
  using Base::query_head;
  using Base::row_of;
  using Base::score;
  using Base::scores;
  using Base::select;
  using Base::shared;
  using Base::sums;
  using Base::thread;
  using Base::threads;
  using Base::tile;
  using Base::warp;
  using Base::warps;
  using typename Base::V;

  __device__ void run() {
    const bool divides_early = call.lengths_are_settled;
    if (!divides_early) wait_for_previous_kernel();
    const bool has_work = divide_work<threads, 1>(call, memory.vectors, shared.work, shared.walk);
    if (divides_early) wait_for_previous_kernel();
    if (!has_work) return;
    load_angles();
    const Segment& s = shared.segment;
    do {
      __syncthreads();  // the segment before has been stored
      if (thread == 0) {
        shared.has_segment = next_segment(call, memory.vectors, shared.walk, shared.segment);
      }
      __syncthreads();
      if (!shared.has_segment) return;
      if (s.vectors <= 0) continue;
      load_queries(s);
      clear();
      if (s.work.sequence >= 0) visit_blocks(s);
      __syncthreads();
      if (s.first_block == s.last_block || meet(s)) store(s);
    } while (!s.is_last);
  }

 private:
  __device__ void clear() {
    for (int i = thread; i < memory.vectors * memory.sum_stride; i += threads) sums[i] = 0.0f;
    if (thread < memory.vectors) shared.states[thread] = {-INFINITY, 0.0f};
  }

  __device__ void visit_blocks(const Segment& s) {
    const int sequence = s.work.sequence;
#pragma unroll 1
    for (int e = s.begin; e < min(s.end, s.work.decoded); ++e) {
      const std::int32_t page = call.r.page(sequence, s.list, e);
      if (page < 0 || page >= call.r.shape.num_pages) continue;
      add_block(s, {LatentForm::encoded, call.r.block(sequence, s.unit, e), e});
    }
    const ExactItems items = exact_items_of(s, call.exact_places);
#pragma unroll 1
    for (int i = items.first; i < items.end; ++i) {
      const std::byte* data = exact_copies(call.r, s, i);
      if (data == nullptr) continue;
      const bool is_sinks = i >= s.work.exact_blocks;
      add_block(s, {is_sinks ? LatentForm::sinks : LatentForm::tail, data,
                    is_sinks ? -1 : s.work.exact_first + i});
    }
  }

  __device__ void add_block(const Segment& s, const LatentBlock& block) {
    if (!select(s, block)) return;
    score(s, block);
    take_exponentials();
    __syncthreads();
    add_values(s, block);
  }

  static_assert(block_tokens == 64, "a lane has two tokens of a block");

  /// scores = tf32 exponentials relative to a row's largest logit so far; sets `factors`.
  __device__ void take_exponentials() {
#pragma unroll 1
    for (int v = warp; v < memory.vectors; v += warps) {
      float* row = scores + v * LatentMemory::score_stride;
      const float x = row[lane], y = row[lane + 32];
      const float2 state = shared.states[v];
      float base = larger_or_nan(state.x, larger_or_nan(x, y));
#pragma unroll
      for (int d = 1; d < 32; d *= 2) base = larger_or_nan(base, __shfl_xor_sync(~0u, base, d));
      const bool sees = base != -INFINITY;
      const float p = sees ? exp2_approximate(x - base) : 0.0f;
      const float q = sees ? exp2_approximate(y - base) : 0.0f;
      float sum = p + q;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
      __syncwarp();  // all lanes have read the state
      row[lane] = __uint_as_float(to_tf32(p));
      row[lane + 32] = __uint_as_float(to_tf32(q));
      if (lane == 0) {
        const float factor = state.y == 0.0f ? 0.0f : exp2_approximate(state.x - base);
        shared.factors[v] = factor;
        shared.states[v] = {base, __fmaf_rn(state.y, factor, sum)};
      }
    }
  }

  __device__ void add_values(const Segment& s, const LatentBlock& block) {
    const ClassShape& shape = call.r.shape;
    const int width = shape.value_width, stride = memory.value_stride();
    const int stream = head_in_unit(s) / shape.unit.value_heads_per_stream;
    const CodecContext context{Side::value, width};
    const std::byte* latents = this->stream_of(block, Side::value, stream);
#pragma unroll 1
    for (int begin = 0; begin < width; begin += memory.value_channels) {
      const int channels = min(memory.value_channels, round_up(width - begin, 16));
      for (int c = lane; c < channels; c += 32) {
        float x[block_tokens / warps];
#pragma unroll
        for (int i = 0; i < block_tokens / warps; ++i) {  // all loads in flight at once
          x[i] = this->template latent<V>(block, context, latents, warp + i * warps, begin + c);
        }
#pragma unroll
        for (int i = 0; i < block_tokens / warps; ++i) {
          tile[(warp + i * warps) * stride + c] = __uint_as_float(to_tf32(x[i]));
        }
      }
      __syncthreads();
      multiply_tiles<2>(
          memory.vectors, channels, block_tokens,
          [&](int v, int t) { return __float_as_uint(scores[v * LatentMemory::score_stride + t]); },
          [&](int t, int c) { return __float_as_uint(tile[t * stride + c]); }, sums + begin,
          memory.sum_stride, [&](int v) { return shared.factors[v]; });
      __syncthreads();
    }
  }

  /// Where thread block `b` leaves its share of a segment's head.
  [[nodiscard]] __device__ std::size_t partial_of(const Segment& s, int b, int v) const {
    return static_cast<std::size_t>((2 * b + (b == s.first_block ? 1 : 0)) * memory.vectors + v);
  }
  [[nodiscard]] __device__ float* partial_sums_of(const Segment& s, int b, int v) const {
    return call.partial_sums +
           partial_of(s, b, v) * static_cast<std::size_t>(call.r.shape.value_width);
  }

  /// Writes this thread block's share of a head; true in the last thread block to do so, with sums
  /// and states those of all, in one order.
  [[nodiscard]] __device__ bool meet(const Segment& s) {
    const int width = call.r.shape.value_width, block = static_cast<int>(blockIdx.x);
    for (int v = warp; v < s.vectors; v += warps) {
      float* to = partial_sums_of(s, block, v);
      for (int c = lane; c < width; c += 32) to[c] = sums[v * memory.sum_stride + c];
      if (lane == 0) call.partial_states[partial_of(s, block, v)] = shared.states[v];
    }
    if (!arrives_last(call, s, &shared.is_last)) return false;
    for (int v = warp; v < s.vectors; v += warps) merge(s, v);
    __syncthreads();
    return true;
  }

  /// Sums and state of a vector from what all thread blocks of a head have left. By a warp.
  __device__ void merge(const Segment& s, int v) {
    const int width = call.r.shape.value_width;
    const auto state_of = [&](int b) {
      return b > s.last_block ? float2{-INFINITY, 0.0f}
                              : __ldcg(call.partial_states + partial_of(s, b, v));
    };
    float base = -INFINITY;
    for (int b = s.first_block + lane; b <= s.last_block; b += 32) {
      const float2 state = state_of(b);
      if (state.y != 0.0f) base = larger_or_nan(base, state.x);
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2) base = larger_or_nan(base, __shfl_xor_sync(~0u, base, d));
    float* weights = scores + v * LatentMemory::score_stride;
    float denominator = 0.0f;
#pragma unroll 1
    for (int begin = s.first_block; begin <= s.last_block; begin += block_tokens) {
      for (int i = lane; i < block_tokens; i += 32) {
        const float2 state = state_of(begin + i);
        weights[i] = state.y == 0.0f ? 0.0f : exp2_approximate(state.x - base);
        denominator = __fmaf_rn(state.y, weights[i], denominator);
      }
      __syncwarp();
      const int count = min(block_tokens, s.last_block - begin + 1);
      for (int c = lane; c < width; c += 32) {
        float x = begin == s.first_block ? 0.0f : sums[v * memory.sum_stride + c];
#pragma unroll 8
        for (int i = 0; i < count; ++i) {
          x = __fmaf_rn(__ldcg(partial_sums_of(s, begin + i, v) + c), weights[i], x);
        }
        sums[v * memory.sum_stride + c] = x;
      }
      __syncwarp();
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2) denominator += __shfl_xor_sync(~0u, denominator, d);
    if (lane == 0) shared.states[v] = {base, denominator};
  }
  [[nodiscard]] __device__ static float larger_or_nan(float a, float b) {
    return a != a || b != b ? NAN : fmaxf(a, b);
  }

  /// Divides, leaves the basis, projects unless latents are wanted, and stores the tile's rows.
  __device__ void store(const Segment& s) {
    const ClassShape& shape = call.r.shape;
    const int width = shape.value_width;
    if (thread < s.vectors) finish_state(s, thread);
    __syncthreads();
    for (int v = warp; v < memory.vectors; v += warps) {
      const float factor = v < s.vectors ? shared.factors[v] : 0.0f;
      for (int c = lane; c < width; c += 32) sums[v * memory.sum_stride + c] *= factor;
    }
    __syncthreads();
    turn_tile<V, false>(CodecContext{Side::value, width},
                        TokenTile{sums, memory.sum_stride, 0, s.vectors});
    const float* rows = sums;
    int stride = memory.sum_stride, channels = width;
    if (!call.params.latent_output) {
      const float* up =
          call.r.factors.value_up + std::int64_t{s.kv_head} * shape.head_dim * shape.value_width;
      channels = shape.head_dim;
      stride = round_up(channels, 16) + 8;
      rows = keys;
      multiply_tiles<2>(
          memory.vectors, channels, width,
          [&](int v, int i) { return to_tf32(i < width ? sums[v * memory.sum_stride + i] : 0.0f); },
          [&](int i, int c) {
            return to_tf32(c < channels && i < width ? up[c * width + i] : 0.0f);
          },
          keys, stride, [](int) { return 0.0f; });
      __syncthreads();
    }
    for (int v = warp; v < s.vectors; v += warps) {
      const std::int64_t row = s.row0 + row_of(s, v);
      for (int c = lane; c < channels; c += 32) {
        call.output.put(row, query_head(s, v), c, rows[v * stride + c]);
      }
    }
  }

  /// Writes lse_ln and leaves in `factors` what makes means of a vector's sums.
  __device__ void finish_state(const Segment& s, int v) {
    constexpr float ln2 = 0.69314718055994531f;
    const int head = query_head(s, v);
    float base = shared.states[v].x, denominator = shared.states[v].y, factor = 1.0f;
    if (call.params.sink_logits != nullptr) {
      const float sink = call.params.sink_logits[head] * log2e;
      const float high = denominator == 0.0f ? sink : fmaxf(base, sink);
      if (high > -INFINITY) {
        factor = denominator == 0.0f ? 0.0f : exp2f(base - high);
        denominator = denominator * factor + exp2f(sink - high);
        base = high;
      }
    }
    shared.factors[v] = denominator == 0.0f ? 0.0f : factor / denominator;
    if (call.lse_ln != nullptr) {
      call.lse_ln[(s.row0 + row_of(s, v)) * call.r.shape.query_heads + head] =
          denominator == 0.0f ? -INFINITY : (base + log2f(denominator)) * ln2;
    }
  }
};

template <class Ref>
__global__ void __launch_bounds__(latent_threads, 2)
    latent_kernel(const __grid_constant__ AttendCall<Ref> call,
                  const __grid_constant__ LatentMemory memory) {
  extern __shared__ __align__(1024) std::byte terse_shared[];
  LatentKernel<Ref>(call, memory, terse_shared).run();
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
