/// Sequences as the arguments of kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "terse/config.hpp"
#include "terse/core/status.hpp"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// Sequences that one launch serves; negative: none.
struct SequenceList {
  static constexpr int capacity = 256;
  int count;
  std::int32_t sequences[capacity];
};

/// Calls `f(list, begin)` for `count` sequences, as many at a time as a launch serves.
template <class IndexOf, class F>
[[nodiscard]] Status for_each_list(std::size_t count, IndexOf&& index_of, F&& f) noexcept {
  SequenceList list{};
  for (std::size_t begin = 0; begin < count; begin += SequenceList::capacity) {
    list.count = static_cast<int>(std::min<std::size_t>(SequenceList::capacity, count - begin));
    for (int i = 0; i < list.count; ++i) {
      list.sequences[i] = index_of(begin + static_cast<std::size_t>(i));
    }
    if (Status s = f(list, begin); !s.ok()) return s;
  }
  return {};
}

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
