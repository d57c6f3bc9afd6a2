/// What the kernels of eviction are given.
#pragma once

#include <cstdint>

#include "terse/cache/ref.hpp"
#include "terse/config.hpp"
#include "terse/cuda/evict/sequence_list.cuh"

namespace terse {
inline namespace TERSE_FLAGS_NAMESPACE {
namespace cuda {
namespace detail {

/// The sequences of a list are those from `first` on of `num_sequences` that the call is about.
/// Pointers are the device's.
template <class Ref>
struct EvictCall {
  Ref r;  // of slot 0
  int incoming_tokens;
  int first, num_sequences;
  std::uint64_t* masks;  // [slot, sequence of the call, unit, mask_entries], what is left
  int mask_entries;
  SequenceList list;
};

}  // namespace detail
}  // namespace cuda
}  // namespace TERSE_FLAGS_NAMESPACE
}  // namespace terse
