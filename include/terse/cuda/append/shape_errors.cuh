/// Rounding of vectors whose errors are shaped, a warp a vector: the codes that the codec's own
/// functions would find one by one.
///
/// Channels are rounded one after another, and each takes on errors of those before it: the way
/// from one to the next is what this costs. So all lanes round the four channels of a group, each
/// for itself, and only then pass their errors on, a lane to its own channels l, l + 32, ... Where
/// there are many vectors a warp takes eight at once: a lane rounds those of its own, and rows of
/// the feedback are read once for all. Where there are few, those rows may wait in shared memory.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

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

/// A tile's numbers as the codes that they are, of as many bits as `Format`'s.
template <AffineFormat Format>
struct RoundedCodes {
  static constexpr AffineFormat affine_format = Format;
  struct Step {
    float divisor, inverse, offset;
  };
  [[nodiscard]] __device__ __forceinline__ static unsigned code_of(float x, const Step&) {
    return static_cast<unsigned>(x);
  }
};

/// Channels that are rounded before their errors are passed on.
inline constexpr int channel_group = 4;

/// Widest vectors whose feedback a thread block keeps in shared memory.
inline constexpr int most_staged_width = 128;

/// Feedback in shared memory: of each group of channels its rows, as far as they are read.
/// Groups lie one after another, rows `[channel_group, 4 * group + 4]`.
TERSE_HOST_DEVICE constexpr int staged_group_floats(int first) noexcept {
  return channel_group * (first + channel_group);
}
TERSE_HOST_DEVICE constexpr int staged_group(int first) noexcept {
  return (first + channel_group) * first / 2;
}
/// Floats of it; 0 for widths that are not kept there.
TERSE_HOST_DEVICE constexpr int staged_floats(int width) noexcept {
  return width <= most_staged_width && width % channel_group == 0 ? staged_group(width) : 0;
}
static_assert(staged_group(2 * channel_group) ==
              staged_group_floats(0) + staged_group_floats(channel_group));

/// The feedback of a stream `[width, width]` in global memory.
struct GlobalFeedback {
  static constexpr bool is_staged = false;
  const float* rows;
  int width;
};

/// Its copy in shared memory, as staged_group says.
struct StagedFeedback {
  static constexpr bool is_staged = true;
  const float* rows;
  int width;
};

/// Starts to copy feedback, aligned to 16 bytes, to `staged [staged_floats(width)]`. By all
/// threads, which wait_for_feedback and meet before it is read.
__device__ __forceinline__ void stage_feedback(const float* feedback, int width, float* staged) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(staged));
  static_assert(most_staged_width / channel_group <= 32);  // a lane 16 bytes of a row
#pragma unroll 1  // code that runs once waits for its instructions
  for (int row = static_cast<int>(threadIdx.x) / 32; row < width; row += warps) {
    const int first = row / channel_group * channel_group, c = channel_group * lane;
    if (c > first) continue;
    const int at = staged_group(first) + (row - first) * (first + channel_group) + c;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     to + static_cast<unsigned>(at * static_cast<int>(sizeof(float)))),
                 "l"(feedback + row * width + c)
                 : "memory");
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits for what this thread has copied.
__device__ __forceinline__ void wait_for_feedback() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/// Rows of the feedback of a group of channels, `Count` entries a lane, and what channels of the
/// group pass to each other, in all lanes.
template <int Count>
struct FeedbackRows {
  float entries[channel_group][Count];
  alignas(16) float within[channel_group][channel_group];

  /// Those of channels `first` to `first + 3`, which are among the lanes' numbers `own`: entries of
  /// channels before the row's, else zeros; none of the lanes' numbers after `own`.
  __device__ __forceinline__ void load(const StagedFeedback& feedback, int first, int own,
                                       int lane) {
    const float* rows = in_shared(feedback.rows) + staged_group(first);
    const int stride = first + channel_group;
#pragma unroll
    for (int i = 0; i < channel_group; ++i) {
#pragma unroll
      for (int k = 0; k < Count; ++k) {
        if (k > own) continue;
        const int c = lane + 32 * k;
        entries[i][k] = k < own || c < first + i ? rows[i * stride + c] : 0.0f;
      }
      if (i == 0) continue;
      *reinterpret_cast<float4*>(within[i]) =
          *reinterpret_cast<const float4*>(rows + i * stride + first);
    }
  }
  __device__ __forceinline__ void load(const GlobalFeedback& feedback, int first, int, int lane) {
#pragma unroll
    for (int i = 0; i < channel_group; ++i) {
      const int j = first + i;
      const bool exists = j >= 0 && j < feedback.width;
      const float* row = feedback.rows + j * feedback.width;
#pragma unroll
      for (int k = 0; k < Count; ++k) {
        const int c = lane + 32 * k;
        entries[i][k] = exists && c < j ? __ldg(row + c) : 0.0f;
      }
    }
  }

  /// Gives all lanes what channels of the group pass to each other.
  __device__ __forceinline__ void share(const StagedFeedback&, int, int) {}  // they have it
  __device__ __forceinline__ void share(const GlobalFeedback&, int first, int own) {
#pragma unroll
    for (int i = 0; i < channel_group; ++i) {
#pragma unroll
      for (int k = 0; k < Count; ++k) {
        if (k != own) continue;
#pragma unroll
        for (int b = 0; b < i; ++b) {
          within[i][b] = __shfl_sync(~0u, entries[i][k], first - 32 * k + b);
        }
      }
    }
  }
};

/// A group of channels of one vector, rounded.
template <class C>
struct RoundedGroup {
  float codes[channel_group];
  float errors[channel_group];              ///< that are passed on
  alignas(16) float missed[channel_group];  ///< what the stored vector lacks of it, as it counts

  /// `u`: the numbers; `passed`: errors of channels behind.
  template <int Count>
  __device__ __forceinline__ void round(const float (&u)[channel_group],
                                        float (&passed)[channel_group],
                                        const FeedbackRows<Count>& rows) {
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
        passed[b] = fused_multiply_add(errors[i], rows.within[i][b], passed[b]);
      }
    }
  }
};

/// Rounds `u`, of `Count` channels a lane, and leaves its codes in `x [width]` of shared memory.
/// `seen`: the vector as it counts; `missed`: what that of the stored one lacks of it.
template <class C, int Count>
__device__ __forceinline__ void shape_errors(const GlobalFeedback& feedback, int lane,
                                             const float (&u)[Count], float*, float* x,
                                             float (&seen)[Count], float (&missed)[Count]) {
  const int width = feedback.width;
  float(&passed)[Count] = missed;  // until its channel is rounded
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    seen[k] = u[k];
    passed[k] = 0.0f;
  }
  const int last = (width - 1) / channel_group * channel_group;
  FeedbackRows<Count> rows, next;
  rows.load(feedback, last, Count - 1, lane);
#pragma unroll
  for (int k = Count - 1; k >= 0; --k) {
#pragma unroll 1
    for (int first = min(32 * k + 32 - channel_group, last); first >= 32 * k;
         first -= channel_group) {
      next.load(feedback, first - channel_group, k, lane);
      const int lane_of_first = first - 32 * k;
      float own[channel_group], before[channel_group];
#pragma unroll
      for (int i = 0; i < channel_group; ++i) {
        own[i] = __shfl_sync(~0u, u[k], lane_of_first + i);
        before[i] = __shfl_sync(~0u, passed[k], lane_of_first + i);
      }
      rows.share(feedback, first, k);
      RoundedGroup<C> group;
      group.round(own, before, rows);
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

/// The same. What all lanes need of a group they read together from `numbers [32 * Count]` in
/// shared memory, aligned to 16 bytes, where what is missed is left too.
template <class C, int Count>
__device__ __forceinline__ void shape_errors(const StagedFeedback& feedback, int lane,
                                             const float (&u)[Count], float* numbers, float* x,
                                             float (&seen)[Count], float (&missed)[Count]) {
  float passed[Count];
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    numbers[lane + 32 * k] = u[k];
    seen[k] = u[k];
    passed[k] = 0.0f;
  }
  __syncwarp();
#pragma unroll
  for (int k = Count - 1; k >= 0; --k) {
#pragma unroll 1
    for (int first = min(32 * (k + 1), feedback.width) - channel_group; first >= 32 * k;
         first -= channel_group) {
      float before[channel_group], own[channel_group];
#pragma unroll
      for (int i = 0; i < channel_group; ++i) {
        before[i] = __shfl_sync(~0u, passed[k], first - 32 * k + i);
      }
      auto* group_numbers = reinterpret_cast<float4*>(numbers + first);
      *reinterpret_cast<float4*>(own) = *group_numbers;
      FeedbackRows<Count> rows;
      rows.load(feedback, first, k, lane);
      RoundedGroup<C> group;
      group.round(own, before, rows);
      __syncwarp();  // all have read what is written now
      if (lane == 0) {
        *group_numbers = *reinterpret_cast<const float4*>(group.missed);
#pragma unroll
        for (int i = 0; i < channel_group; ++i) x[first + i] = group.codes[i];
      }
#pragma unroll
      for (int i = channel_group - 1; i >= 0; --i) {
#pragma unroll
        for (int b = 0; b <= k; ++b) {
          passed[b] = fused_multiply_add(group.errors[i], rows.entries[i][b], passed[b]);
          seen[b] = fused_multiply_add(own[i], rows.entries[i][b], seen[b]);
        }
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < Count; ++k) missed[k] = numbers[lane + 32 * k];
  __syncwarp();
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
__device__ __noinline__ void round_token_run(const CodecContext context,
                                             const GlobalFeedback feedback, const TokenTile tile,
                                             int begin, int count, float* exchange,
                                             std::byte* block) {
  const CalibrationLayout at{context.width};
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
      rows.load(feedback, first, k, lane);
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
      rows.share(feedback, first, k);
      RoundedGroup<C> group;
      group.round(own, before, rows);
      __syncwarp();  // all have read what is written now
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

/// Makes the numbers of `x [width]` in shared memory their codes, and stores the token's factor.
/// `exchange` as for round_token_run. By a warp.
template <class C, int Count, class Feedback>
__device__ __noinline__ void round_token(const CodecContext context, const Feedback feedback,
                                         float* vector, int token, float* exchange,
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
    static_assert(most_staged_width <= exchange_floats);
    shape_errors<C>(feedback, lane, u, in_shared(exchange), x, seen, missed);
    gain = gain_of<C>(context.calibration + at.weight(), width, lane, seen, missed);
  }
  if (lane == 0) C::store_factor(context, token, gain, size, block);
}

/// Floats of shared memory beside the tile: what warps exchange and, with `stages`, the feedback.
TERSE_HOST_DEVICE constexpr int shaping_floats(int width, bool stages) noexcept {
  return most_exchanging_warps * exchange_floats + (stages ? staged_floats(width) : 0);
}

/// Whether the stream's feedback can be copied to shared memory.
__device__ __forceinline__ bool can_be_staged(const CodecContext& context) {
  return context.calibration != nullptr && staged_floats(context.width) > 0 &&
         reinterpret_cast<std::uintptr_t>(context.calibration) % 16 == 0;
}

/// Starts to bring what round_tokens reads of the stream's calibration to where it is read.
/// `scratch [shaping_floats(width, stages)]` in shared memory, aligned to 16 bytes. By all threads.
__device__ __forceinline__ void begin_rounding(const CodecContext& context, float* scratch,
                                               bool stages) {
  if (context.calibration == nullptr) return;
  const int width = context.width;
  const float* feedback = context.calibration + CalibrationLayout{width}.feedback();
  if (stages && can_be_staged(context)) {
    stage_feedback(feedback, width, scratch + most_exchanging_warps * exchange_floats);
  } else {
    prefetch_together(feedback, width * width * static_cast<int>(sizeof(float)));
  }
}

/// round_tokens of vectors of at most 32 * Count channels.
template <class C, int Count, class Feedback>
__device__ __forceinline__ void round_tokens_of_width(const CodecContext& context,
                                                      const Feedback& feedback,
                                                      const TokenTile& tile, float* exchange,
                                                      std::byte* block) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = min(static_cast<int>(blockDim.x) / 32, most_exchanging_warps);
  if (warp >= warps) return;
  // What a warp can hold of eight vectors at once; few are done sooner one by one.
  if constexpr (!Feedback::is_staged && Count <= 4) {
    if (context.calibration != nullptr && tile.count > 2 * warps) {
      for (int begin = warp * tokens_at_once; begin < tile.count; begin += warps * tokens_at_once) {
        const int count = min(tile.count - begin, tokens_at_once);
        round_token_run<C, Count>(context, feedback, tile, begin, count,
                                  exchange + warp * exchange_floats, block);
      }
      return;
    }
  }
  if constexpr (!Feedback::is_staged) {
    if (warp >= tile.count && context.calibration != nullptr) {
      // Those without a vector fetch what the others wait for.
      touch_backwards(feedback.rows,
                      context.width * context.width * static_cast<int>(sizeof(float)),
                      static_cast<int>(threadIdx.x) - 32 * tile.count, 32 * (warps - tile.count));
    }
  }
  for (int t = warp; t < tile.count; t += warps) {
    const int token = tile.first + t;
    round_token<C, Count>(context, feedback, tile.row(token), token,
                          exchange + warp * exchange_floats, block);
  }
}

/// Calls `work(feedback, count)` with the feedback of the stream, where begin_rounding has left it
/// with the same arguments, and, as a type, the channels of a lane. By all threads.
template <class Work>
__device__ __forceinline__ void with_feedback(const CodecContext& context, float* scratch,
                                              bool stages, Work&& work) {
  const int width = context.width;
  if (stages && can_be_staged(context)) {
    const StagedFeedback feedback{in_shared(scratch + most_exchanging_warps * exchange_floats),
                                  width};
    wait_for_feedback();
    __syncthreads();
    if (width <= 64) {
      work(feedback, std::integral_constant<int, 2>{});
    } else {
      work(feedback, std::integral_constant<int, 4>{});
    }
  } else {
    const GlobalFeedback feedback{context.calibration + CalibrationLayout{width}.feedback(), width};
    if (width <= 64) {
      work(feedback, std::integral_constant<int, 2>{});
    } else if (width <= 128) {
      work(feedback, std::integral_constant<int, 4>{});
    } else {
      work(feedback, std::integral_constant<int, 8>{});
    }
  }
}

/// Makes the tile's numbers their codes, and stores the tokens' factors. After begin_rounding, with
/// the same arguments; by all threads, which do not meet at the end.
template <class C>
__device__ void round_tokens(const CodecContext& context, const TokenTile& tile, float* scratch,
                             bool stages, std::byte* block) {
  static_assert(C::max_width <= most_dense_width);
  with_feedback(context, scratch, stages, [&](auto feedback, auto count) {
    round_tokens_of_width<C, decltype(count)::value>(context, feedback, tile, scratch, block);
  });
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
