/// Rounding of vectors whose errors are shaped, a warp a vector: the codes that the codec's own
/// functions would find one by one.
///
/// Channels are rounded one after another, and each takes on errors of those before it: the way
/// from one to the next is what this costs. So all lanes round the four channels of a group, each
/// for itself, and only then pass their errors on, a lane to its own channels l, l + 32, ... Where
/// there are many vectors a warp takes eight at once: a lane rounds those of its own, and rows of
/// the feedback are read once for all.
#pragma once

#include <concepts>
#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/warp/dense_turn.cuh"
#include "terse/cuda/warp/prefetch.cuh"
#include "terse/cuda/warp/sums.cuh"
#include "terse/policy/calibration.hpp"
#include "terse/quant/affine_group.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Codecs that round channels to a grid by successive cancellation, and say how in steps.
template <class C>
concept ShapesErrors = AffineCodec<C> && UsesCalibration<C> &&
    requires(const CodecContext& context, float x, const typename C::Size& size, std::byte* block) {
  { C::step } -> std::convertible_to<float>;
  { C::size_of(x, 1) } -> std::same_as<typename C::Size>;
  { C::level_of(x) } -> std::same_as<float>;
  { C::norm_gain(x, x) } -> std::same_as<float>;
  { C::unbiased_gain(x, x) } -> std::same_as<float>;
  C::store_factor(context, 0, x, size, block);
};

/// A tile's numbers as the codes of C that they are.
template <class C>
struct RoundedCodes {
  static constexpr AffineFormat affine_format = C::affine_format;
  struct Step {
    float divisor, inverse, offset;
  };
  [[nodiscard]] __device__ __forceinline__ static unsigned code_of(float x, const Step&) {
    return static_cast<unsigned>(x);
  }
};

/// Channels that are rounded before their errors are passed on.
inline constexpr int channel_group = 4;

/// Rows of the feedback `[width, width]` of a group of channels, `Count` entries a lane.
template <int Count>
struct FeedbackRows {
  float entries[channel_group][Count];

  /// Those of channels `first` to `first + 3`: entries of channels before the row's, else zeros.
  __device__ __forceinline__ void load(const float* feedback, int width, int first, int lane) {
#pragma unroll
    for (int i = 0; i < channel_group; ++i) {
#pragma unroll
      for (int k = 0; k < Count; ++k) {
        const int j = first + i, c = lane + 32 * k;
        entries[i][k] = c < j && j < width ? __ldg(feedback + j * width + c) : 0.0f;
      }
    }
  }
};

/// A group of channels of one vector, rounded.
template <class C>
struct RoundedGroup {
  float codes[channel_group];
  float errors[channel_group];  ///< that are passed on
  float missed[channel_group];  ///< what the stored vector lacks of it, as it counts

  /// `u`: the numbers; `passed`: errors of channels behind; `entry(i, b)`: the feedback of channel
  /// i of the group to b, by all lanes of a warp.
  template <class Entry>
  __device__ __forceinline__ void round(const float (&u)[channel_group],
                                        float (&passed)[channel_group], Entry&& entry) {
    constexpr AffineFormat format = C::affine_format;
#pragma unroll
    for (int i = channel_group - 1; i >= 0; --i) {
      const float target = u[i] + passed[i];
      const float level = C::level_of(target);
      const float value = rounded_product(level, C::step);
      codes[i] = level + format.centre;
      errors[i] = u[i] - value;
      missed[i] = target - value;
#pragma unroll
      for (int b = i - 1; b >= 0; --b) {
        passed[b] = fused_multiply_add(errors[i], entry(i, b), passed[b]);
      }
    }
  }
};

/// Rounds `u`, of `Count` channels a lane, and leaves its codes in `x [width]` of shared memory.
/// `seen`: the vector as it counts; `missed`: what that of the stored one lacks of it.
template <class C, int Count>
__device__ __forceinline__ void shape_errors(const float* feedback, int width, int lane,
                                             const float (&u)[Count], float* x,
                                             float (&seen)[Count], float (&missed)[Count]) {
  float(&passed)[Count] = missed;  // until its channel is rounded
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    seen[k] = u[k];
    passed[k] = 0.0f;
  }
  const int last = (width - 1) / channel_group * channel_group;
  FeedbackRows<Count> rows, next;
  rows.load(feedback, width, last, lane);
#pragma unroll
  for (int k = Count - 1; k >= 0; --k) {
#pragma unroll 1
    for (int first = min(32 * k + 32 - channel_group, last); first >= 32 * k;
         first -= channel_group) {
      next.load(feedback, width, first - channel_group, lane);
      const int lane_of_first = first - 32 * k;
      float own[channel_group], before[channel_group];
#pragma unroll
      for (int i = 0; i < channel_group; ++i) {
        own[i] = __shfl_sync(~0u, u[k], lane_of_first + i);
        before[i] = __shfl_sync(~0u, passed[k], lane_of_first + i);
      }
      RoundedGroup<C> group;
      group.round(own, before, [&](int i, int b) {
        return __shfl_sync(~0u, rows.entries[i][k], lane_of_first + b);
      });
#pragma unroll
      for (int i = channel_group - 1; i >= 0; --i) {
#pragma unroll
        for (int b = 0; b <= k; ++b) {
          passed[b] = fused_multiply_add(group.errors[i], rows.entries[i][b], passed[b]);
          seen[b] = fused_multiply_add(own[i], rows.entries[i][b], seen[b]);
        }
        if (lane == lane_of_first + i) {
          missed[k] = group.missed[i];  // its feedback to itself and those behind is 0
          if (first + i < width) x[first + i] = group.codes[i];
        }
      }
      rows = next;
    }
  }
}

/// The gain of a vector that a warp has rounded, in all lanes.
template <class C, int Count>
[[nodiscard]] __device__ __forceinline__ float gain_of(const float* weight, int width, int lane,
                                                       const float (&seen)[Count],
                                                       const float (&missed)[Count]) {
  float length = 0.0f, along = 0.0f;
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    if (lane + 32 * k >= width) break;
    const float weighted = rounded_product(seen[k], __ldg(weight + lane + 32 * k));
    length = fused_multiply_add(weighted, seen[k], length);
    along = fused_multiply_add(weighted, seen[k] - missed[k], along);
  }
  return C::unbiased_gain(sum_of_lanes(length), sum_of_lanes(along));
}

/// Vectors that a warp rounds at once, and the shared memory through which its lanes exchange them,
/// for at most so many warps.
inline constexpr int tokens_at_once = 8;
inline constexpr int exchange_floats = 4 * channel_group * tokens_at_once;
inline constexpr int most_exchanging_warps = 8;

/// round_token of `count` tokens of a tile from its `begin`-th on, at most tokens_at_once, with a
/// calibration. `exchange [exchange_floats]` in shared memory, aligned to 16 bytes, is the warp's.
template <class C, int Count>
__device__ __noinline__ void round_token_run(const CodecContext context, const TokenTile tile,
                                             int begin, int count, float* exchange,
                                             std::byte* block) {
  const CalibrationLayout at{context.width};
  const float* feedback = context.calibration + at.feedback();
  const int lane = static_cast<int>(threadIdx.x) % 32, width = context.width;
  float* rows_of_tokens = in_shared(tile.row(tile.first + begin));
  float4* passed_on =
      reinterpret_cast<float4*>(in_shared(exchange));  // [token], channels of a group
  float4* numbers = passed_on + tokens_at_once;
  float4* errors = numbers + tokens_at_once;
  float4* lacking = errors + tokens_at_once;
  typename C::Size size{};  // of the lane's token
  float seen[tokens_at_once][Count], missed[tokens_at_once][Count];
#pragma unroll
  for (int t = 0; t < tokens_at_once; ++t) {
    float* x = in_shared(rows_of_tokens + t * tile.stride);
    float energy = 0.0f;
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      seen[t][k] = t < count && lane + 32 * k < width ? x[lane + 32 * k] : 0.0f;
      missed[t][k] = 0.0f;
      energy = fused_multiply_add(seen[t][k], seen[t][k], energy);
    }
    const typename C::Size own = C::size_of(sum_of_lanes(energy), width);
    if (lane == t) size = own;
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      seen[t][k] = rounded_product(seen[t][k], own.inverse);
      if (t < count && lane + 32 * k < width) x[lane + 32 * k] = seen[t][k];
    }
  }
  const int token = lane % tokens_at_once;
  float* own_row = rows_of_tokens + min(token, count - 1) * tile.stride;
  const int last = (width - 1) / channel_group * channel_group;
  FeedbackRows<Count> rows;
#pragma unroll
  for (int k = Count - 1; k >= 0; --k) {
#pragma unroll 1
    for (int first = min(32 * k + 32 - channel_group, last); first >= 32 * k;
         first -= channel_group) {
      rows.load(feedback, width, first, lane);
      const int lane_of_first = first - 32 * k, place = lane - lane_of_first;
      const bool is_in_group = place >= 0 && place < channel_group;
      if (is_in_group) {
#pragma unroll
        for (int t = 0; t < tokens_at_once; ++t) {
          in_shared(exchange)[channel_group * t + place] = missed[t][k];
        }
      }
      __syncwarp();
      const float4 passed = passed_on[token];
      float before[channel_group] = {passed.x, passed.y, passed.z, passed.w};
      float own[channel_group];
#pragma unroll
      for (int i = 0; i < channel_group; ++i) {
        own[i] = first + i < width ? in_shared(own_row)[first + i] : 0.0f;
      }
      RoundedGroup<C> group;
      group.round(own, before, [&](int i, int b) {
        return __shfl_sync(~0u, rows.entries[i][k], lane_of_first + b);
      });
      if (lane < count) {
        numbers[lane] = {own[0], own[1], own[2], own[3]};
        errors[lane] = {group.errors[0], group.errors[1], group.errors[2], group.errors[3]};
        lacking[lane] = {group.missed[0], group.missed[1], group.missed[2], group.missed[3]};
#pragma unroll
        for (int i = 0; i < channel_group; ++i) {
          if (first + i < width) in_shared(own_row)[first + i] = group.codes[i];
        }
      }
      __syncwarp();
#pragma unroll
      for (int t = 0; t < tokens_at_once; ++t) {
        const float4 n = numbers[t], e = errors[t];
        const float number[channel_group] = {n.x, n.y, n.z, n.w};
        const float error[channel_group] = {e.x, e.y, e.z, e.w};
#pragma unroll
        for (int i = channel_group - 1; i >= 0; --i) {
#pragma unroll
          for (int b = 0; b <= k; ++b) {
            missed[t][b] = fused_multiply_add(error[i], rows.entries[i][b], missed[t][b]);
            seen[t][b] = fused_multiply_add(number[i], rows.entries[i][b], seen[t][b]);
          }
        }
        if (is_in_group) {
          missed[t][k] = in_shared(exchange)[channel_group * (3 * tokens_at_once + t) + place];
        }
      }
    }
  }
  float gain = 0.0f;  // of the lane's token
#pragma unroll
  for (int t = 0; t < tokens_at_once; ++t) {
    const float own =
        gain_of<C>(context.calibration + at.weight(), width, lane, seen[t], missed[t]);
    if (lane == t) gain = own;
  }
  if (lane < count) C::store_factor(context, tile.first + begin + lane, gain, size, block);
}

/// Makes the numbers of `x [width]` in shared memory their codes, and stores the token's factor. By
/// a warp.
template <class C, int Count>
__device__ __noinline__ void round_token(const CodecContext context, float* vector, int token,
                                         std::byte* block) {
  constexpr AffineFormat format = C::affine_format;
  float* x = in_shared(vector);
  const int lane = static_cast<int>(threadIdx.x) % 32, width = context.width;
  float u[Count], energy = 0.0f;
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    u[k] = lane + 32 * k < width ? x[lane + 32 * k] : 0.0f;
    energy = fused_multiply_add(u[k], u[k], energy);
  }
  const typename C::Size size = C::size_of(sum_of_lanes(energy), width);
#pragma unroll
  for (int k = 0; k < Count; ++k) u[k] = rounded_product(u[k], size.inverse);
  float gain;
  if (context.calibration == nullptr) {
    float own = 0.0f, of_levels = 0.0f;
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      if (lane + 32 * k >= width) break;
      const float level = C::level_of(u[k]);
      own = fused_multiply_add(u[k], u[k], own);
      of_levels = fused_multiply_add(level, level, of_levels);
      x[lane + 32 * k] = level + format.centre;
    }
    gain = C::norm_gain(sum_of_lanes(own), sum_of_lanes(of_levels));
  } else {
    const CalibrationLayout at{width};
    float seen[Count], missed[Count];
    shape_errors<C>(context.calibration + at.feedback(), width, lane, u, x, seen, missed);
    gain = gain_of<C>(context.calibration + at.weight(), width, lane, seen, missed);
  }
  if (lane == 0) C::store_factor(context, token, gain, size, block);
}

/// Brings what a block's tokens are turned and shaped by into the second-level cache. By all
/// threads, which do not meet.
template <class C>
__device__ __forceinline__ void prefetch_calibration(const CodecContext& context, bool turns,
                                                     bool encodes) {
  const int bytes = context.width * context.width * static_cast<int>(sizeof(float));
  if constexpr (HasDenseBasis<C>) {
    const float* matrix = C::dense_turn(context, Turn::to_basis).matrix;
    if (turns && matrix != nullptr) prefetch_together(matrix, bytes);
  }
  if constexpr (ShapesErrors<C>) {
    if (encodes && context.calibration != nullptr) {
      prefetch_together(context.calibration + CalibrationLayout{context.width}.feedback(), bytes);
    }
  }
}

/// Makes the tile's numbers their codes, and stores the tokens' factors. `exchange
/// [most_exchanging_warps, exchange_floats]` in shared memory, aligned to 16 bytes. By all threads,
/// which do not meet at the end.
template <class C>
__device__ void round_tokens(const CodecContext& context, const TokenTile& tile, float* exchange,
                             std::byte* block) {
  static_assert(C::max_width <= most_dense_width);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = min(static_cast<int>(blockDim.x) / 32, most_exchanging_warps);
  if (warp >= warps) return;
  // What a warp can hold of eight vectors at once; few are done sooner one by one.
  if (context.calibration != nullptr && context.width <= 128 && tile.count > 2 * warps) {
    float* own = exchange + warp * exchange_floats;
    for (int begin = warp * tokens_at_once; begin < tile.count; begin += warps * tokens_at_once) {
      const int count = min(tile.count - begin, tokens_at_once);
      if (context.width <= 64) {
        round_token_run<C, 2>(context, tile, begin, count, own, block);
      } else {
        round_token_run<C, 4>(context, tile, begin, count, own, block);
      }
    }
    return;
  }
  if (warp >= tile.count && context.calibration != nullptr) {
    // Those without a vector fetch what the others wait for.
    touch_backwards(context.calibration + CalibrationLayout{context.width}.feedback(),
                    context.width * context.width * static_cast<int>(sizeof(float)),
                    static_cast<int>(threadIdx.x) - 32 * tile.count, 32 * (warps - tile.count));
  }
  for (int t = warp; t < tile.count; t += warps) {
    const int token = tile.first + t;
    if (context.width <= 64) {
      round_token<C, 2>(context, tile.row(token), token, block);
    } else if (context.width <= 128) {
      round_token<C, 4>(context, tile.row(token), token, block);
    } else {
      round_token<C, 8>(context, tile.row(token), token, block);
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
