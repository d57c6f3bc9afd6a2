/// Codes of levels of a table: the groups of a token side by side, or, where one has all of a
/// token, by the lanes of a warp. The codes that the codec would find one by one.
#pragma once

#include <cstddef>

#include "terse/config.hpp"
#include "terse/core/math.hpp"
#include "terse/cuda/append/divisor.cuh"
#include "terse/cuda/append/token_tile.cuh"
#include "terse/cuda/warp/sums.cuh"
#include "terse/quant/level_codes.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// sum_of_squares by a warp, in all lanes.
struct SquaresOfLanes {
  int lane;

  template <class Number>
  [[nodiscard]] __device__ __forceinline__ float operator()(int count, Number number) const {
    float sum = 0.0f;
    for (int i = lane; i < count; i += 32) {
      const float x = number(i);
      sum += rounded_product(x, x);
    }
    return sum_of_lanes(sum);
  }
};

/// Formats whose one group a token is found by sums of squares, which lanes share.
template <class Format>
concept FindsGroupBySums = Format::group == 0 && requires(const float* x, SquaresOfLanes squares) {
  Format::find_group(x, 1, squares);
};

/// Makes the tile's numbers their codes, and stores the scales. By all threads, which do not meet
/// at the end.
template <LevelCodec C>
__device__ void find_level_codes(const CodecContext& context, const TokenTile& tile,
                                 std::byte* block) {
  using Format = typename C::level_format;
  const int width = context.width, thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const auto store = [&](int token, int channel, const typename Format::Group& g) {
    *reinterpret_cast<typename C::Scale*>(block + C::scale_offset(context, token, channel)) =
        g.scale;
  };
  if constexpr (FindsGroupBySums<Format>) {
    const int lane = thread % 32;
    for (int t = thread / 32; t < tile.count; t += threads / 32) {
      const int token = tile.first + t;
      float* x = tile.row(token);
      const typename Format::Group g = Format::find_group(x, width, SquaresOfLanes{lane});
      __syncwarp();  // a format may look at numbers of other lanes
      if (lane == 0) store(token, 0, g);
      for (int c = lane; c < width; c += 32) x[c] = static_cast<float>(Format::code_of(x[c], g));
    }
  } else {
    const int group = C::group_channels(width), groups = C::groups(width);
    const Divisor by_count = Divisor::of(tile.count);
    for (int i = thread; i < tile.count * groups; i += threads) {
      const int index = by_count.quotient(i), first = index * group;
      const int token = tile.first + i - index * tile.count;
      const int count = width - first < group ? width - first : group;
      float* x = tile.row(token) + first;
      const typename Format::Group g = Format::find_group(x, count);
      store(token, first, g);
      for (int c = 0; c < count; ++c) x[c] = static_cast<float>(Format::code_of(x[c], g));
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
