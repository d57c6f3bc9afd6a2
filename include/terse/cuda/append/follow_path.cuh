/// Codes along a trellis, a warp one vector or, where there are many, several: those of the path
/// that Trellis::find_path finds.
///
/// Eight lanes look for the next step of a vector's four survivors, each from a state to another;
/// all lanes then pass on the errors that it leads to, a lane to its own channels l, l + 32, ...
#pragma once

#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/shape_errors.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/warp/operands.cuh"
#include "terse/cuda/warp/sums.cuh"
#include "terse/policy/calibration.hpp"
#include "terse/quant/shaped_trellis.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// What a calibration says of one channel.
template <int Count>
struct ChannelFeedback {
  float weight;
  float entries[Count];  ///< what it passes on to channels before it, those of a lane

  /// Of channel `j`, which is among the lanes' numbers `own`; of the numbers after these nothing.
  __device__ __forceinline__ void load(const StagedFeedback& feedback, const float* weights, int j,
                                       int own, int lane) {
    const int first = j / channel_group * channel_group;
    const int at = staged_group(first) + (j - first) * (first + channel_group) + lane;
    const std::uint32_t row = shared_address(feedback.rows) + 4u * static_cast<unsigned>(at);
    load_entries(j, own, lane, [&](int k) {
      return __uint_as_float(load_shared_4(row + 128u * static_cast<unsigned>(k)));
    });
    weight = __ldg(weights + j);
  }
  __device__ __forceinline__ void load(const GlobalFeedback& feedback, const float* weights, int j,
                                       int own, int lane) {
    const float* row = feedback.rows + j * feedback.width + lane;
    load_entries(j, own, lane, [&](int k) { return __ldg(row + 32 * k); });
    weight = __ldg(weights + j);
  }

 private:
  template <class Read>
  __device__ __forceinline__ void load_entries(int j, int own, int lane, Read read) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      if (k > own) continue;
      entries[k] = k < own || lane + 32 * k < j ? read(k) : 0.0f;
    }
  }
};

/// Calls `visit(k, j, feedback of j)` for channels j from the last to the first; k, in which
/// 32 k <= j < 32 k + 32, is known when code is compiled. Without `weights` all weigh 1 and nothing
/// is passed on.
template <int Count, class Feedback, class Visit>
__device__ __forceinline__ void for_each_channel(const Feedback& feedback, const float* weights,
                                                 int lane, Visit&& visit) {
#pragma unroll
  for (int k = Count - 1; k >= 0; --k) {
    const int last = min(32 * k + 31, feedback.width - 1);
    ChannelFeedback<Count> own{1.0f, {}};
    if (weights != nullptr && last >= 32 * k) own.load(feedback, weights, last, k, lane);
#pragma unroll 1
    for (int j = last; j >= 32 * k; --j) {
      ChannelFeedback<Count> next{1.0f, {}};
      if (weights != nullptr && j > 32 * k) next.load(feedback, weights, j - 1, k, lane);
      visit(k, j, own);
      own = next;
    }
  }
}

/// sum_of_products of vectors of `width` channels, of which a lane has its own, in all lanes.
template <int Count>
[[nodiscard]] __device__ __forceinline__ float product_of_lanes(const float (&a)[Count],
                                                                const float (&b)[Count], int width,
                                                                int lane) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < Count; ++k) {
    if (lane + 32 * k < width) sum = fused_multiply_add(a[k], b[k], sum);
  }
  return sum_of_lanes(sum);
}

/// Makes the numbers of `count` tokens of a tile, from its `begin`-th on and at most `Tokens`,
/// their codes, and stores their factors. `exchange [exchange_floats]` in shared memory, aligned to
/// 16 bytes, is the warp's. By a warp.
template <class C, int Count, int Tokens, class Feedback>
__device__ __noinline__ void follow_paths_of_run(const CodecContext context,
                                                 const Feedback feedback, const TokenTile tile,
                                                 int begin, int count, float* exchange,
                                                 std::byte* block) {
  using Levels = typename C::Levels;
  constexpr int states = Levels::num_states, lanes = 2 * states;  // a lane a way to a state
  static_assert(states == 4 && Tokens * lanes <= 32 && 2 * Tokens * states <= exchange_floats);
  const int lane = static_cast<int>(threadIdx.x) % 32, width = context.width;
  const float* weights = context.calibration == nullptr
                             ? nullptr
                             : context.calibration + CalibrationLayout{width}.weight();
  // Shared addresses: of the tokens' numbers, which become their history, and of what lanes pass on
  // and what errors the states make, both [token, state].
  const std::uint32_t rows = shared_address(tile.row(tile.first + begin));
  const auto row_bytes = static_cast<std::uint32_t>(tile.stride) * 4u;
  const auto place = [&](int t, int c) {
    return rows + static_cast<unsigned>(t) * row_bytes + 4u * static_cast<unsigned>(c);
  };
  const auto number = [](std::uint32_t at) { return __uint_as_float(load_shared_4(at)); };
  const std::uint32_t passed_on = shared_address(exchange);
  const std::uint32_t errors = passed_on + 4u * Tokens * states;

  typename C::Size size{};  // of the lane's token
  float seen[Tokens][Count], passed[Tokens][states][Count];
#pragma unroll
  for (int t = 0; t < Tokens; ++t) {
    const auto exists = [&](int k) { return t < count && lane + 32 * k < width; };
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      seen[t][k] = exists(k) ? number(place(t, lane + 32 * k)) : 0.0f;
    }
    const typename C::Size own = C::size_of(product_of_lanes(seen[t], seen[t], width, lane), width);
    if (lane == t) size = own;
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      seen[t][k] = rounded_product(seen[t][k], own.inverse);
      if (exists(k)) store_shared_4(place(t, lane + 32 * k), __float_as_uint(seen[t][k]));
#pragma unroll
      for (int s = 0; s < states; ++s) passed[t][s][k] = 0.0f;
    }
  }
  if (lane < Tokens * states) store_shared_4(passed_on + 4u * static_cast<unsigned>(lane), 0);
  __syncwarp();

  // The lane's way: of its token, to a state with path bit x, from the lower or the upper parent.
  const int token = lane / lanes % Tokens, to = lane / 2 % states;
  const unsigned before = static_cast<unsigned>(to) / 2, x = static_cast<unsigned>(to) % 2;
  const unsigned parent = static_cast<unsigned>(lane) % 2;
  const int from = static_cast<int>(before + 2 * parent);
  const typename Levels::Subset subset = Levels::subset(x ^ parent, before);
  const bool is_own = lane < lanes * Tokens && token < count;
  const std::uint32_t numbers = place(min(token, count - 1), 0);
  const std::uint32_t passed_to_it = passed_on + 4u * static_cast<unsigned>(token * states + from);
  const std::uint32_t error_at = errors + 4u * static_cast<unsigned>(token * states + to);
  float cost = to == 0 ? 0.0f : Levels::unreachable;
  for_each_channel<Count>(
      feedback, weights, lane, [&](int k, int j, const ChannelFeedback<Count>& channel) {
        if (weights != nullptr && lane == j - 32 * k) {
#pragma unroll
          for (int t = 0; t < Tokens; ++t) {
            store_shared_16(passed_on + 16u * static_cast<unsigned>(t),
                            {__float_as_uint(passed[t][0][k]), __float_as_uint(passed[t][1][k]),
                             __float_as_uint(passed[t][2][k]), __float_as_uint(passed[t][3][k])});
          }
        }
        __syncwarp();
        const std::uint32_t at = numbers + 4u * static_cast<unsigned>(j);
        const float u = number(at), target = u + number(passed_to_it);
        const float so_far = __shfl_sync(~0u, cost, lane / lanes * lanes + 2 * from);
        const typename Levels::Step step = Levels::step_to(target, subset, channel.weight, so_far);
        const float other = __shfl_xor_sync(~0u, step.cost, 1);
        const bool takes_upper = parent == 1 ? step.cost < other : other < step.cost;
        const bool is_taken = takes_upper == (parent == 1);
        cost = is_taken ? step.cost : other;
        const unsigned taken = __ballot_sync(~0u, takes_upper);
        if (is_taken && is_own) store_shared_4(error_at, __float_as_uint(u - step.level));
        __syncwarp();
        if (is_taken && is_own) {
          store_shared_1(at + static_cast<unsigned>(to), Levels::history_entry(step, x, parent));
        }
        if (weights == nullptr) return;
#pragma unroll
        for (int t = 0; t < Tokens; ++t) {
          const float own = __shfl_sync(~0u, u, t * lanes);
          const uint4 e = load_shared_16(errors + 16u * static_cast<unsigned>(t));
          const float error[states] = {__uint_as_float(e.x), __uint_as_float(e.y),
                                       __uint_as_float(e.z), __uint_as_float(e.w)};
#pragma unroll
          for (int b = 0; b < Count; ++b) {
            if (b > k) continue;
            float moved[states];
#pragma unroll
            for (int s = 0; s < states; ++s) {
              const bool is_upper = (taken >> (t * lanes + 2 * s) & 1u) != 0;
              const float old = is_upper ? passed[t][s / 2 + 2][b] : passed[t][s / 2][b];
              moved[s] = fused_multiply_add(error[s], channel.entries[b], old);
            }
#pragma unroll
            for (int s = 0; s < states; ++s) passed[t][s][b] = moved[s];
            seen[t][b] = fused_multiply_add(own, channel.entries[b], seen[t][b]);
          }
        }
      });

  // Back along the cheapest path, a lane a token: from the first channel, which came last.
  float costs[states];
#pragma unroll
  for (int s = 0; s < states; ++s) {
    costs[s] = __shfl_sync(~0u, cost, lane % Tokens * lanes + 2 * s);
  }
  __syncwarp();
  if (lane < count) {
    unsigned state = Levels::cheapest(costs);
    std::uint32_t entries = load_shared_4(place(lane, 0));
#pragma unroll 4
    for (int j = 0; j < width; ++j) {
      const std::uint32_t next = load_shared_4(place(lane, min(j + 1, width - 1)));
      const unsigned code = Levels::step_back(entries >> 8 * state & 31u, &state);
      store_shared_4(place(lane, j), __float_as_uint(static_cast<float>(code)));
      entries = next;
    }
  }
  __syncwarp();
  float values[Tokens][Count];
#pragma unroll
  for (int t = 0; t < Tokens; ++t) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      const auto code = [&](int c) {
        return t < count && c < width ? static_cast<unsigned>(number(place(t, c))) : 0u;
      };
      const int c = lane + 32 * k;
      values[t][k] = Levels::level(Levels::index_of(code(c), code(c + 1), code(c + 2)));
    }
  }

  float gain = 0.0f;  // of the lane's token
  if (weights == nullptr) {
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {  // nothing was passed on: numbers are seen as they are
      const float own = C::norm_gain(product_of_lanes(seen[t], seen[t], width, lane),
                                     product_of_lanes(values[t], values[t], width, lane));
      if (lane == t) gain = own;
    }
  } else {
    float kept[Tokens][Count];
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
#pragma unroll
      for (int k = 0; k < Count; ++k) kept[t][k] = values[t][k];
    }
    for_each_channel<Count>(
        feedback, weights, lane, [&](int k, int j, const ChannelFeedback<Count>& channel) {
#pragma unroll
          for (int t = 0; t < Tokens; ++t) {
            const float value = __shfl_sync(~0u, values[t][k], j - 32 * k);
#pragma unroll
            for (int b = 0; b < Count; ++b) {
              if (b <= k) kept[t][b] = fused_multiply_add(value, channel.entries[b], kept[t][b]);
            }
          }
        });
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
      float weighted[Count];
#pragma unroll
      for (int k = 0; k < Count; ++k) {
        const bool exists = lane + 32 * k < width;
        weighted[k] = exists ? rounded_product(seen[t][k], __ldg(weights + lane + 32 * k)) : 0.0f;
      }
      const float own = C::unbiased_gain(product_of_lanes(weighted, seen[t], width, lane),
                                         product_of_lanes(weighted, kept[t], width, lane));
      if (lane == t) gain = own;
    }
  }
  if (lane < count) C::store_factor(context, tile.first + begin + lane, gain, size, block);
}

/// Makes the tile's numbers their codes, and stores the tokens' factors. As round_tokens.
template <class C>
__device__ void follow_paths(const CodecContext& context, const TokenTile& tile, float* scratch,
                             bool stages, std::byte* block) {
  static_assert(C::max_width <= most_dense_width);
  with_feedback(context, scratch, stages, [&](auto feedback, auto count) {
    constexpr int channels = decltype(count)::value;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = min(static_cast<int>(blockDim.x) / 32, most_exchanging_warps);
    if (warp >= warps) return;
    float* exchange = scratch + warp * exchange_floats;
    // As many as a warp's registers hold; few are done sooner one by one.
    if constexpr (!feedback.is_staged && channels <= 4) {
      if (tile.count > 2 * warps) {
        constexpr int at_once = 8 / channels;
        for (int t = warp * at_once; t < tile.count; t += warps * at_once) {
          follow_paths_of_run<C, channels, at_once>(context, feedback, tile, t,
                                                    min(tile.count - t, at_once), exchange, block);
        }
        return;
      }
    }
    for (int t = warp; t < tile.count; t += warps) {
      follow_paths_of_run<C, channels, 1>(context, feedback, tile, t, 1, exchange, block);
    }
  });
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
