/// The live tokens of one unit as a thread block sees them: terse::TokenList on the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/core/bits.hpp"
#include "terse/policy/evictor.hpp"
#include "terse/policy/selection.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

inline constexpr int select_threads = 256;

/// What the threads share, beside the arrays over entries behind it.
struct SelectScratch {
  int histogram[256];
  int warp_sums[select_threads / 32];
  std::uint64_t prefix;  ///< of the keys of the victims
  int left;              ///< victims among the keys that begin with it
  int inside;            ///< keys that begin with it
};

/// Inclusive sum over the threads of a thread block. Meets them twice.
template <int Threads>
[[nodiscard]] __device__ int sum_to_here(int x, int (&warp_sums)[Threads / 32], int* total) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int y = __shfl_up_sync(~0u, x, d);
    if (lane >= d) x += y;
  }
  if (lane == 31) warp_sums[warp] = x;
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int w = 0; w < Threads / 32; ++w) {
    if (w < warp) x += warp_sums[w];
    sum += warp_sums[w];
  }
  __syncthreads();
  *total = sum;
  return x;
}

/// Every thread of a thread block has one, over the same unit. Ranks are those of the tokens that
/// lived when it was made; kills go to the table at once.
template <class Ref>
class UnitTokens {
 public:
  using TokenState = typename Ref::TokenState;

  /// Shared memory of a unit of up to `entries` entries.
  [[nodiscard]] static std::size_t shared_bytes(int entries) noexcept {
    return sizeof(SelectScratch) +
           static_cast<std::size_t>(entries) * (sizeof(std::uint64_t) + sizeof(int));
  }

  /// Lists the live tokens before position `length`. By all threads.
  __device__ UnitTokens(const Ref& r, int sequence, int unit, std::int64_t length,
                        std::byte* shared)
      : r_(r),
        sequence_(sequence),
        unit_(unit),
        entries_(r.entry_count(sequence, r.row_of_unit(unit))),
        scratch_(*reinterpret_cast<SelectScratch*>(shared)),
        live_(reinterpret_cast<std::uint64_t*>(shared + sizeof(SelectScratch))),
        until_(reinterpret_cast<int*>(live_ + r.shape.entries)) {
    for (int begin = 0; begin < entries_; begin += select_threads) {
      const int e = begin + static_cast<int>(threadIdx.x);
      const std::uint64_t live =
          e < entries_ ? r.live_mask(sequence, unit, e) & r.before(sequence, unit, e, length) : 0;
      int total = 0;
      const int until = sum_to_here<select_threads>(count_ones(live), scratch_.warp_sums, &total);
      if (e < entries_) {
        live_[e] = live;
        until_[e] = size_ + until;
      }
      size_ += total;
    }
    __syncthreads();
  }

  [[nodiscard]] __device__ int size() const { return size_; }
  [[nodiscard]] __device__ std::int64_t position(int i) const {
    const Place at = place(i);
    return r_.position(sequence_, unit_, at.entry, at.token);
  }
  [[nodiscard]] __device__ const TokenState& state(int i) const {
    if constexpr (std::is_empty_v<TokenState>) {
      return empty_;
    } else {
      const Place at = place(i);
      return r_.token_states[r_.unit_entry(sequence_, unit_, at.entry) * block_tokens +
                             static_cast<std::size_t>(at.token)];
    }
  }
  /// Any number of threads may kill the same token.
  __device__ void kill(int i) const {
    const Place at = place(i);
    atomicAnd(reinterpret_cast<unsigned long long*>(&r_.live_mask(sequence_, unit_, at.entry)),
              ~(1ull << at.token));
  }

  /// Calls `f(i)` for every i of [begin, end), each in one thread.
  template <class F>
  __device__ void for_each(int begin, int end, F&& f) const {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    for (int e = static_cast<int>(threadIdx.x) >> 5; e < entries_; e += select_threads / 32) {
      const int first = first_of(e);
      if (until_[e] <= begin || first >= end) continue;
#pragma unroll
      for (int t = lane; t < block_tokens; t += 32) {
        if ((live_[e] >> t & 1u) == 0) continue;
        at_ = {e, t};
        at_rank_ = first + count_ones(live_[e] & ((1ull << t) - 1));
        if (begin <= at_rank_ && at_rank_ < end) f(at_rank_);
      }
    }
  }

  /// Of the functions below.
  [[nodiscard]] __device__ SelectScratch& select_scratch() const { return scratch_; }

 private:
  struct Place {
    int entry, token;
  };

  [[nodiscard]] __device__ int first_of(int entry) const {
    return entry == 0 ? 0 : until_[entry - 1];
  }
  [[nodiscard]] __device__ Place place(int i) const {
    if (i == at_rank_) return at_;
    int low = 0, high = entries_ - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (until_[middle] > i) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    std::uint64_t bits = live_[low];
    for (int skip = i - first_of(low); skip > 0; --skip) bits &= bits - 1;
    at_ = {low, __ffsll(static_cast<long long>(bits)) - 1};
    at_rank_ = i;
    return at_;
  }

  const Ref& r_;
  int sequence_, unit_, entries_;
  int size_ = 0;
  SelectScratch& scratch_;
  std::uint64_t* live_;  // [entry]
  int* until_;           // [entry]: tokens of it and those before
  // The place looked up last: selection asks several things of one token.
  mutable int at_rank_ = -1;
  mutable Place at_{};
  [[no_unique_address]] TokenState empty_{};
};

/// As terse::kill_if.
template <class Ref, class Victim>
__device__ void kill_if(const UnitTokens<Ref>& list, int begin, int end, Victim&& victim) {
  list.for_each(begin, end, [&](int i) {
    if (victim(i)) list.kill(i);
  });
}

/// As terse::keep_highest: radix selection of the lowest pairs of score and rank, a digit a turn.
template <class Ref, class Score>
__device__ void keep_highest(const UnitTokens<Ref>& list, int begin, int end, int keep,
                             Score&& score) {
  const int victims = end - begin - (keep > 0 ? keep : 0);
  if (victims <= 0) return;
  SelectScratch& scratch = list.select_scratch();
  const auto key_of = [&](int i) {
    return static_cast<std::uint64_t>(ordered_bits(score(i))) << 32 | static_cast<std::uint32_t>(i);
  };
  __syncthreads();
  if (threadIdx.x == 0) {
    scratch.prefix = 0;
    scratch.left = victims;
  }
  int shift = 64;
  do {
    shift -= 8;
    scratch.histogram[threadIdx.x] = 0;
    static_assert(select_threads == 256);
    __syncthreads();
    const std::uint64_t prefix = scratch.prefix;
    const int left = scratch.left;
    list.for_each(begin, end, [&](int i) {
      const std::uint64_t key = key_of(i);
      if (shift < 56 && key >> (shift + 8) != prefix) return;
      const auto digit = static_cast<unsigned>(key >> shift) & 255u;
      // Scores of one unit begin alike: one addition for all lanes that have the digit.
      const unsigned lanes = __match_any_sync(__activemask(), digit);
      if ((threadIdx.x & 31u) == static_cast<unsigned>(__ffs(static_cast<int>(lanes)) - 1)) {
        atomicAdd(&scratch.histogram[digit], __popc(lanes));
      }
    });
    __syncthreads();
    const int count = scratch.histogram[threadIdx.x];
    int total = 0;
    const int until = sum_to_here<select_threads>(count, scratch.warp_sums, &total);
    if (until - count < left && left <= until) {
      scratch.prefix = prefix << 8 | threadIdx.x;
      scratch.left = left - (until - count);
      scratch.inside = count;
    }
    __syncthreads();
  } while (scratch.left < scratch.inside);  // else all that begin so are victims
  const std::uint64_t last = scratch.prefix;
  kill_if(list, begin, end, [&](int i) { return key_of(i) >> shift <= last; });
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
